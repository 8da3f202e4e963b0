import pytest
import torch

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.wan.transformer import WanInContextTransformer3DModel
from tests.models.adapters.adapter_cases import LAYERS, RANK, D, changes, weights
from tests.tiny import tiny_editor

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 12,
    "pooled_projection_dim": 10,
    "rope_axes_dim": (4, 6, 6),
    "guidance_embeds": False,
}
TINY_WAN = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 128, "num_layers": 2, "text_dim": 12}


@pytest.fixture
def config():
    return dict(TINY)


@pytest.fixture
def model(config):
    """A tiny model with every parameter random: a fresh one starts as the identity, which would hide mistakes."""
    return randomised(HunyuanVideoInContextTransformer3DModel(**config))


@pytest.fixture(scope="module")
def matrices():
    """A and B of every original layer."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(RANK, columns, generator=generator) * 0.1,
            torch.randn(rows, RANK, generator=generator) * 0.1,
        )
        for name, (rows, columns, _) in LAYERS.items()
    }


@pytest.fixture(scope="module")
def by_diffusers(matrices):
    """A and B of every diffusers' layer."""
    parts = {}
    for name, (a, b) in matrices.items():
        layers = LAYERS[name][2]
        sizes = [len(b)] if len(layers) == 1 else [D, D, D, len(b) - 3 * D][: len(layers)]
        parts |= {layer: (a, piece.clone()) for layer, piece in zip(layers, b.split(sizes), strict=True)}
    return parts


@pytest.fixture
def apply(tmp_path):
    """apply(way, path): how every layer of the tiny editor is changed by an adapter."""

    def by(way, path):
        editor = tiny_editor()
        before = weights(editor.transformer)
        return changes(before, way(path, editor, tmp_path))

    return by


def tiny_model(family, layers=1):
    """Of each kind of block so many, random."""
    if family == "wan":
        return randomised(WanInContextTransformer3DModel(**TINY_WAN | {"num_layers": layers}))
    depths = {"num_layers": layers, "num_single_layers": layers}
    return randomised(HunyuanVideoInContextTransformer3DModel(**TINY | depths))


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim > 1 else 0.1
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(seed=0, size=2, source=(2, 4, 6), target=(2, 4, 6), text=7, lengths=(7, 3), family="hunyuan_video"):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    inputs = {
        "hidden_states": normal(size, 16, *target),
        "source_hidden_states": normal(size, 16, *source),
        "timestep": torch.linspace(200, 900, size),
        "encoder_hidden_states": normal(size, text, 12),
        "encoder_attention_mask": torch.arange(text) < torch.tensor(lengths)[:, None],
    }
    return inputs if family == "wan" else inputs | {"pooled_projections": normal(size, 10)}
