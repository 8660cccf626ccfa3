"""A training run: recipe, steps, checkpoints and evaluation."""
