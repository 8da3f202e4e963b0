"""The in-context diffusion transformer and its checkpoints."""

from icve.model.base_folders import BasePaths, resolve_base
from icve.model.checkpoints import export_transformer, load_transformer
from icve.model.hunyuan_video import HunyuanVideoInContextTransformer3DModel

__all__ = [
    "BasePaths",
    "HunyuanVideoInContextTransformer3DModel",
    "export_transformer",
    "load_transformer",
    "resolve_base",
]
