"""Procedural videos with exact ground truth: scenes, edits, masks and instructions for the demo, tests and benchmarks."""
