"""Export recipes side by side."""
