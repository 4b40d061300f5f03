"""The shipped student: accuracy, speed, cold start."""
