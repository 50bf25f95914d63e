"""What the `aegis-*` commands do, a module each, once the flags are read: here torch and LeRobot are imported."""
