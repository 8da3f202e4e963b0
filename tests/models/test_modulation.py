"""Modulated norm and gated residual: their own gradients, in the order and precision of the plain composition."""

import pytest
import torch
import torch.nn.functional as F

from icve.models.layout import Runs
from icve.models.modulation import gated_residual, modulated_norm

RUNS = Runs((0, 1), ((0, 2), (1, 3), (0, 1)))
TIMES = [0, 0, 1, 1, 1, 0]  # of each token


def values(dtype, *trained):
    torch.manual_seed(0)
    shapes = {"x": (2, 6, 4), "update": (2, 6, 4), "shift": (2, 2, 4), "scale": (2, 2, 4), "gate": (2, 2, 4)}
    found = {name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    return {name: value.requires_grad_(name in (trained or shapes)) for name, value in found.items()}


def both(x, update, shift, scale, gate):
    return gated_residual(x, update * modulated_norm(x, shift, scale, RUNS), gate, RUNS)


def plain(x, update, shift, scale, gate):
    shift, scale, gate = (vector[:, TIMES] for vector in (shift, scale, gate))
    return x + gate * (update * (F.layer_norm(x, (4,), eps=1e-6) * (1 + scale) + shift))


def gradients(function, given):
    function(**given).square().sum().backward()
    return {name: value.grad for name, value in given.items()}


def test_values_and_gradients_are_those_of_the_plain_composition():
    assert torch.autograd.gradcheck(both, tuple(values(torch.float64).values()))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        torch.testing.assert_close(both(**values(dtype)), plain(**values(dtype)), atol=tolerance, rtol=tolerance)
        found, expected = (gradients(function, values(dtype)) for function in (both, plain))
        torch.testing.assert_close(found, expected, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("trained", ["x", "update", "shift", "scale", "gate"])
def test_only_what_is_trained_gets_a_gradient(trained):
    found, all_found = gradients(both, values(torch.float64, trained)), gradients(both, values(torch.float64))
    assert {name for name, gradient in found.items() if gradient is not None} == {trained}
    torch.testing.assert_close(found[trained], all_found[trained])


def test_little_is_kept_for_backward():
    """The input of the norm and the update, of the size of all tokens; nothing of the update where gates are frozen."""
    for frozen, expected in (((), 2), (("gate",), 1)):
        given = values(torch.float32, *({"x", "update", "shift", "scale", "gate"} - set(frozen)))
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            normed = modulated_norm(given["x"], given["shift"], given["scale"], RUNS)
            gated_residual(normed, given["update"], given["gate"], RUNS)
        assert sum(tensor.shape == (2, 6, 4) for tensor in kept.values()) == expected


def test_mixed_precision_gives_what_the_parts_give():
    with torch.autocast("cpu", torch.bfloat16):
        given = values(torch.bfloat16)
        normed = modulated_norm(given["x"], given["shift"], given["scale"], RUNS)
        assert normed.dtype == F.layer_norm(given["x"], (4,)).dtype
        out = gated_residual(given["x"].float(), given["update"], given["gate"], RUNS)
    assert out.dtype == torch.float32
    (out.sum() + normed.sum()).backward()
    assert all(value.grad.dtype == torch.bfloat16 for value in given.values())
