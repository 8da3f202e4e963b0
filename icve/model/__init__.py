"""The in-context diffusion transformer and its checkpoints."""

from .checkpoints import export_transformer, load_transformer
from .hunyuan_video import HunyuanVideoInContextTransformer3DModel

__all__ = ["HunyuanVideoInContextTransformer3DModel", "export_transformer", "load_transformer"]
