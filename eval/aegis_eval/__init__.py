"""Does the policy act, and does its backbone still answer? Questions, benchmarks, scores, rollouts and one report."""
