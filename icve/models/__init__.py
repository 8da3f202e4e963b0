"""Transformers, codecs and text encoders and their files: what all families share, and a folder for each family."""
