"""Questions about images: where they come from, the loss of their answers, and a probe that asks them in training."""
