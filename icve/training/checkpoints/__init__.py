"""Checkpoints as folders: what is in them, writing, reading, starting from them."""
