"""Instruction-based video editors that learn in context: one package to train, run and evaluate them."""

__version__ = "0.1.0"
