"""From a trained network to files for devices, and the runtimes that run them."""
