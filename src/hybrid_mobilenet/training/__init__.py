"""Training and evaluation: recipes, steps, the loop, runs with checkpoints."""
