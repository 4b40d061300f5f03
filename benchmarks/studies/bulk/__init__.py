"""A million lines through `fieldrun label`."""
