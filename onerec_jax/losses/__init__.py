"""Loss functions: arrays in, one value per example out."""
