"""Text encoders: instruction to token embeddings, mask and pooled vector (see `icve.text.hashed` for the contract)."""

from icve.text.hashed import HashedTextEncoder
from icve.text.hunyuan import HunyuanTextEncoder

__all__ = ["HashedTextEncoder", "HunyuanTextEncoder"]
