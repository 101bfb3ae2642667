"""Training: options, data, losses, the loop."""
