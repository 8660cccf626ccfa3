"""Export a trained network to files for devices, run them in their runtimes, and measure them."""
