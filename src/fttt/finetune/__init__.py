"""Fine-tuning on gold solutions: the baselines that learn before the test, not during it."""
