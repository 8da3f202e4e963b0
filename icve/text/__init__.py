"""Text encoders: instruction to token embeddings, mask and pooled vector (see `icve.text.hashed` for the contract)."""

from icve.text.hashed import HashedTextEncoder

__all__ = ["HashedTextEncoder"]
