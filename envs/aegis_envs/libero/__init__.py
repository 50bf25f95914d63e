"""LeRobot's LIBERO behind a check of what is missing."""
