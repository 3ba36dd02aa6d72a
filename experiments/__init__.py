"""Experiment files: one per claim, each a `get_config()`."""
