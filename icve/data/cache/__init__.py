"""Latents and text embeddings that were encoded before training, and which manifest they belong to."""
