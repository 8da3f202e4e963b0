"""Batch editing: which items, at which sizes, in which windows, through the model and into files."""
