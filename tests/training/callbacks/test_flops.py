import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from icve.training.callbacks.flops import TrainingFlops
from tests.training.conftest import tiny_transformer


def real_flops(model, text):
    """FLOPs of a pass forward and back on the CPU, with 36 visual tokens."""
    latents = torch.randn(1, 16, 3, 4, 6)
    inputs = {"hidden_states": latents, "source_hidden_states": latents, "timestep": torch.tensor([500.0])}
    inputs |= {"encoder_hidden_states": torch.randn(1, text, 12), "pooled_projections": torch.randn(1, 10)}
    # The counter knows the CPU's plain attention only. It keeps the scores, which the fused one computes again in the
    # backward pass: 2 N^2 D for each block.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        model(**inputs).sum().backward()
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    width = 16
    return flops.get_total_flops() + 2 * blocks * (36 + text) ** 2 * width + 2 * text**2 * width


def test_they_are_those_of_a_real_pass():
    model = tiny_transformer(num_layers=3, num_single_layers=2)
    flops = TrainingFlops(type(model), model.config, model.patch)
    assert flops((3, 4, 6), 36 + 9) == pytest.approx(real_flops(model, 9), rel=1e-3)
    assert flops((3, 4, 6), 36 + 12) == pytest.approx(real_flops(model, 12), rel=1e-3)
    assert flops((3, 4, 6), 36 + 200) == pytest.approx(real_flops(model, 200), rel=1e-3)
