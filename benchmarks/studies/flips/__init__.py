"""Labels that differ between engines, and how near their two best logits are."""
