"""Any transformers image-text-to-text model, as the policy's prefix encoder and as what answers questions."""
