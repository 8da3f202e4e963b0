"""Products in float8, emulated: no machine of the tests multiplies such numbers."""

import sys
from functools import partial

import pytest
import torch
from torch import nn

from icve.models.lora import LoRA
from icve.training.callbacks.float8 import Float8Matmuls, use_float8
from icve.training.distributed.activation_checkpointing import Checkpointing
from icve.training.start import Start
from tests.training.conftest import tiny_transformer

STEPS = 12
# Relative, of the loss. A number of e4m3 has three bits of mantissa: a rounding of up to 1/16, whose mean over the
# terms of a product is far smaller.
TOLERANCE = 0.02

WIDE = {"num_attention_heads": 2, "attention_head_dim": 16, "rope_axes_dim": (4, 8, 4)}  # multiples of 16
float8 = pytest.importorskip("torchao.float8.float8_linear", reason="icve[fp8] is not installed")


def test_the_products_of_the_blocks_are_exchanged_and_nothing_else():
    model = tiny_transformer(**WIDE)
    before = dict(model.named_parameters())
    names = use_float8(model, torch.device("cpu"), emulate=True)
    assert sorted(names) == sorted(
        ["transformer_blocks.0.attn." + name for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")]
        + ["transformer_blocks.0.attn." + name for name in ("add_q_proj", "add_k_proj", "add_v_proj")]
        + [f"transformer_blocks.0.{mlp}.net.{layer}" for mlp in ("ff", "ff_context") for layer in ("0.proj", "2")]
        + ["single_transformer_blocks.0." + name for name in ("proj_mlp", "proj_out", "attn.to_q")]
        + ["single_transformer_blocks.0." + name for name in ("attn.to_k", "attn.to_v")]
    )
    found = {name for name, layer in model.named_modules() if isinstance(layer, float8.Float8Linear)}
    assert found == set(names)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())


def losses(make_module, make_trainer, make_data, make_losses, callbacks=(), **options):
    seen = make_losses()
    module = make_module(
        transformer=tiny_transformer(**WIDE), optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0), **options
    )
    if "start" in options:
        module.add_adapter("weights")
    make_trainer(STEPS, [*callbacks, seen]).fit(module, datamodule=make_data())
    return torch.tensor([loss for loss, _, _ in seen.lines]), module


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_training_is_that_of_float32_to_the_rounding(mode, make_module, make_trainer, make_data, make_losses):
    make = partial(losses, make_module, make_trainer, make_data, make_losses, checkpointing=Checkpointing(mode))
    exact, _ = make()
    rounded, module = make([Float8Matmuls(emulate=True)])
    assert (rounded != exact).all()  # it does round
    torch.testing.assert_close(rounded, exact, rtol=TOLERANCE, atol=0.0)
    assert module.transformer.state_dict().keys() == tiny_transformer(**WIDE).state_dict().keys()


def test_an_adapter_is_trained_on_weights_that_multiply_in_float8(make_module, make_trainer, make_data, make_losses):
    make = partial(losses, make_module, make_trainer, make_data, make_losses)
    lora = {"start": Start(lora=LoRA(rank=4, weights_dtype="float32"))}
    exact, _ = make(**lora)
    rounded, module = make([Float8Matmuls(emulate=True)], **lora)
    torch.testing.assert_close(rounded, exact, rtol=TOLERANCE, atol=0.0)
    layers = {name for name, layer in module.transformer.named_modules() if isinstance(layer, float8.Float8Linear)}
    assert layers
    assert not any("lora_" in name for name in layers)


@pytest.mark.parametrize(("tokens", "dtype"), [(7, torch.float32), (33, torch.bfloat16)])
def test_any_number_of_tokens_and_both_precisions(tokens, dtype):
    model = nn.Module()
    model.block = nn.Sequential(nn.Linear(16, 32, dtype=dtype))
    model._repeated_blocks, model._skip_layerwise_casting_patterns = ["Sequential"], None
    x = torch.randn(tokens, 16, dtype=dtype)
    expected = model.block(x)
    assert use_float8(model, torch.device("cpu"), emulate=True) == ["block.0"]
    result = model.block(x)
    assert result.dtype == dtype
    assert not torch.equal(result, expected)
    torch.testing.assert_close(result, expected, rtol=0.0, atol=0.1 * float(expected.detach().abs().max()))
    result.float().square().sum().backward()
    assert model.block[0].weight.grad.dtype == dtype


def test_what_lacks_is_said_at_once(make_module, make_trainer, make_data, monkeypatch):
    def train(callback, **model):
        module = make_module(transformer=tiny_transformer(**model))
        make_trainer(1, [callback]).fit(module, datamodule=make_data())

    with pytest.raises(ValueError, match=r"in float8 .* and cpu does not: take it out of trainer\.callbacks"):
        train(Float8Matmuls(), **WIDE)
    with pytest.raises(ValueError, match="no layer whose widths are multiples of 16"):
        train(Float8Matmuls(emulate=True), attention_head_dim=12, num_attention_heads=2, rope_axes_dim=(4, 4, 4))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ImportError, match=r"pip install 'icve\[fp8\]'"):
        train(Float8Matmuls(emulate=True), **WIDE)


def test_a_validation_alone_computes_as_usual(make_module, make_trainer, make_data):
    module = make_module(transformer=tiny_transformer(**WIDE))
    make_trainer(1, [Float8Matmuls()]).validate(module, datamodule=make_data(validation=1), verbose=False)
    assert not any(isinstance(layer, float8.Float8Linear) for layer in module.modules())
