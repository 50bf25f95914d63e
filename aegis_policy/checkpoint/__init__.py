"""What a checkpoint holds besides LeRobot's files: anchor, pretrained weights, training state, model card."""
