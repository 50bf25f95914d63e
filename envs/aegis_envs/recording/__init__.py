"""Recording demonstrations of scripted experts as LeRobot datasets."""
