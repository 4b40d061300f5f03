"""The recipe search beside uniform recipes."""
