"""Short trainings that compare shapes of the student."""
