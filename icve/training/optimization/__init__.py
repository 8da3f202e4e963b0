"""Optimizers, groups of parameters, and the learning rate's schedule."""
