"""What frozen vectors are worth on texts and labels that nobody trained on."""
