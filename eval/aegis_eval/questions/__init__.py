"""Questions about images and their right answers: `benchmarks` finds them by name, and says where new ones go."""
