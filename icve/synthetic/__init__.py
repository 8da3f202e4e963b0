"""Procedural videos with exact ground truth (scenes, edits, masks, instructions) for demo, tests and benchmarks."""
