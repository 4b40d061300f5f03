"""Other ways from a text to a label."""
