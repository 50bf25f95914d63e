"""From a pretrained model and samples to the anchor that protects it."""
