"""LeRobot datasets: what the policy needs of them, and how their action chunks are read."""
