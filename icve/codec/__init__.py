"""Codecs between pixels and latents; every codec has the same `encode`/`decode` contract (see `icve.codec.dct`)."""

from icve.codec.dct import DCTCodec
from icve.codec.hunyuan import HunyuanVideoCodec

__all__ = ["DCTCodec", "HunyuanVideoCodec"]
