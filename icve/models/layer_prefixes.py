"""What programs put before the names of a transformer's layers in adapters."""

from collections.abc import Iterator

# What stands before a layer's name: diffusers, ComfyUI, PEFT, and DDP.
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "module.")


def bare_names(layer: str) -> Iterator[str]:
    """A layer's name as it stands in a file, then without one prefix after the other."""
    yield layer
    while prefix := next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), None):
        layer = layer.removeprefix(prefix)
        yield layer
