"""What happens beside the training step: explanations, checkpoints of random state, interruption, progress, loggers."""
