"""Published compression methods on transformers."""
