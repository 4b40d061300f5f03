"""AN1's claims on our own tasks."""
