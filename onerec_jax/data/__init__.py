"""Data sets, their tables and the example files made of them."""
