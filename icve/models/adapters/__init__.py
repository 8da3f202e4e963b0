"""Adapters (LoRA) as they are published: their files, key layouts and settings."""
