"""Questions and their right answers: about rendered tabletops, and of public benchmarks."""
