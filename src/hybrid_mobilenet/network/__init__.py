"""The networks of the paper: their layers as data, their cost, and the PyTorch model."""
