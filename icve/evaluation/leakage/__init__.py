"""Test videos that are in the training data: `icve eval leakage`."""
