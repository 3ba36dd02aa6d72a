"""Flax Linen modules of the networks."""
