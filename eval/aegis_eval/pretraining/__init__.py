"""Training the embedded VLM from scratch."""
