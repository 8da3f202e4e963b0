"""What is counted on the meta device against closed forms, against whole runs, and against real training on the CPU."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from icve.models.counting import LiveBytes, Sample, _inputs, block_depths, build_on_meta, count, run
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel as Model
from icve.models.lora import LoRA
from icve.models.recompute import MODES
from icve.models.wan.transformer import WanInContextTransformer3DModel as Wan
from icve.training.distributed.activation_checkpointing import Checkpointing
from tests.models import closed_forms as formulas
from tests.toy_family import ToyTransformer

TINY = {"num_attention_heads": 4, "attention_head_dim": 16, "rope_axes_dim": (4, 6, 6), "num_layers": 2}
TINY |= {"num_single_layers": 3, "text_embed_dim": 32, "pooled_projection_dim": 32}
WIDE = TINY | {"num_attention_heads": 8, "attention_head_dim": 64, "rope_axes_dim": (8, 28, 28), "num_layers": 3}
TINY_WAN = {"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 256, "num_layers": 4, "text_dim": 32}
SMALL = Sample(5, 16, 24, 20)


def complete(config):
    return dict(build_on_meta(Model, config).config)


@pytest.mark.parametrize("depths", [(2, 3), (3, 0), (0, 4)])
def test_few_blocks_tell_about_many(depths):
    config = TINY | dict(zip(("num_layers", "num_single_layers"), depths, strict=True))
    few, whole = count(Model, config, SMALL, torch.bfloat16), run(Model, config, SMALL, torch.bfloat16)
    for mode in MODES:
        for name in ("forward", "backward", "recompute", "saved", "peak"):
            values = getattr(few.counts(mode), name), getattr(whole[mode], name)
            assert values[0] == pytest.approx(values[1], rel=1e-3), (mode, name)


@pytest.mark.parametrize(("config", "sample"), [(TINY, SMALL), (WIDE, Sample(3, 32, 48, 40))], ids=["tiny", "wide"])
def test_closed_forms_agree_within_a_tenth(config, sample):
    parameters = sum(parameter.numel() for parameter in build_on_meta(Model, config).parameters())
    assert formulas.parameters(complete(config)) == pytest.approx(parameters, rel=0.1)
    assert formulas.deviation(complete(config), sample, 2, count(Model, config, sample, torch.bfloat16)) < 0.1
    for mode in MODES:
        counted = count(Model, config, sample, torch.bfloat16).counts(mode)
        assert formulas.forward_flops(complete(config), sample) == pytest.approx(counted.forward, rel=0.1)
        saved = formulas.saved_bytes(complete(config), sample, 2, mode)
        assert saved == pytest.approx(counted.saved, rel=0.1)
        # Two products for each of the forward pass, and five instead of two in attention.
        assert 2 <= counted.backward / counted.forward <= 2.5
        attention = formulas.attention_flops(complete(config), sample)
        expected = {"none": 0, "selective": counted.forward - attention, "full": counted.forward}[mode]
        assert counted.recompute == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("shape", ["tiny", "13B"])
def test_a_block_keeps_two_units_selectively_and_one_fully(shape):
    """In tokens times width times bytes of a number: its input, and attention's result with a float32 per head."""
    config, sample = (TINY, SMALL) if shape == "tiny" else ({}, Sample(5, 30, 52, 64))
    measured, width = count(Model, config, sample, torch.bfloat16), complete(config)["attention_head_dim"]
    tokens = sum(formulas.tokens(complete(config), sample))
    unit = tokens * width * complete(config)["num_attention_heads"] * 2
    for kind in measured.depths:
        kept = {mode: (measured.two[kind][mode].saved - measured.one[kind][mode].saved) / unit for mode in MODES}
        assert kept["full"] == pytest.approx(1, rel=1e-3)
        assert kept["selective"] == pytest.approx(2 + 4 / (2 * width), rel=1e-3)
        assert 17 < kept["none"] < 23


@pytest.mark.parametrize("shape", ["tiny", "1.3B"])
def test_a_block_of_wan_keeps_a_unit_for_each_of_its_attentions(shape):
    config = TINY_WAN if shape == "tiny" else {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    sample = SMALL if shape == "tiny" else Sample(5, 30, 52, 64)
    measured = count(Wan, config, sample, torch.bfloat16)
    width = config.get("attention_head_dim", 128)
    unit = 2 * sample.frames * sample.height * sample.width // 4 * width * config["num_attention_heads"] * 2
    one, two = measured.one["num_layers"], measured.two["num_layers"]
    kept = {mode: (two[mode].saved - one[mode].saved) / unit for mode in MODES}
    # Without the text's keys and values, which are computed again.
    assert kept["full"] == pytest.approx(1, rel=1e-3)
    assert kept["selective"] == pytest.approx(3 + 2 * 4 / (2 * width), rel=1e-3)
    assert 20 < kept["none"] < 35
    flops = two["selective"].recompute - one["selective"].recompute
    assert 0 < flops < 0.95 * (two["full"].recompute - one["full"].recompute)


def real(config, mode, every=1, kind=Model):
    """The same model and inputs with memory, on the CPU."""
    torch.manual_seed(0)
    model = build_on_meta(kind, config).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    Checkpointing(mode, every).apply(model)
    inputs = {name: None if x is None else torch.rand(x.shape) for name, x in _inputs(model, SMALL, None).items()}
    return model, inputs


@pytest.mark.parametrize(
    ("kind", "mode", "every"),
    [(Model, *case) for case in (("none", 1), ("full", 1), ("selective", 1), ("full", 2), ("selective", 2))]
    + [(Model, "selective", 3), (Wan, "none", 1), (Wan, "full", 1), (Wan, "selective", 2)],
)
def test_real_training_keeps_computes_and_needs_what_was_counted(kind, mode, every):
    config = TINY if kind is Model else TINY_WAN
    counted = count(kind, config, SMALL, torch.float32).counts(mode, every)
    model, inputs = real(config, mode, every, kind)
    known = {x.untyped_storage()._cdata for x in (*model.parameters(), *filter(torch.is_tensor, inputs.values()))}
    # The counter knows the plain attention of the CPU, not its fused one.
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(**inputs)
    assert flops.get_total_flops() == pytest.approx(counted.forward, rel=0.01)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with LiveBytes(known) as memory:
        loss = model(**inputs).sum()
        assert memory.live == pytest.approx(counted.saved, rel=0.1)
        loss.backward()
    assert memory.most == pytest.approx(counted.peak, rel=0.1)


def test_checkpointing_trades_computing_for_memory():
    none, selective, full = (count(Model, TINY, SMALL, torch.bfloat16).counts(mode) for mode in MODES)
    assert full.saved < selective.saved < 0.2 * none.saved
    assert full.peak < selective.peak < none.peak
    assert none.recompute == 0 < selective.recompute < full.recompute
    assert none.forward == selective.forward == full.forward
    assert none.backward == selective.backward == full.backward


def test_every_second_block_lies_between():
    config = TINY | {"num_layers": 3, "num_single_layers": 4}
    measured = count(Model, config, SMALL, torch.bfloat16)
    for mode in ("selective", "full"):
        found = [measured.counts(mode, every) for every in (1, 2, 3, 7)] + [measured.counts("none")]
        assert [c.saved for c in found] == sorted(c.saved for c in found)
        # 7, 4, 3, 1 and none of the seven blocks are computed again.
        shares = [c.recompute / found[0].recompute for c in found]
        assert shares == pytest.approx([1, 4 / 7, 3 / 7, 1 / 7, 0], rel=0.02)


class SeveralLatents(ToyTransformer):
    """Two noised and two clean latents, one after the other in time."""

    latents, context = ("edit", "alpha"), ("source", "reference")

    def arguments(self, x, sigma, text, context, guidance):
        video, source = (torch.cat(list(parts.values()), 2) for parts in (x, context))
        return {"video": video, "source": source, "sigma": sigma, "text": text}

    def named(self, output):
        return dict(zip(self.latents, output.chunk(2, 2), strict=True))


def test_all_latents_that_a_family_names_are_counted():
    several = run(SeveralLatents, {}, SMALL, torch.float32)
    one = run(ToyTransformer, {}, replace(SMALL, frames=2 * SMALL.frames), torch.float32)
    for mode in MODES:
        for name in ("forward", "backward", "recompute"):
            assert getattr(several[mode], name) == getattr(one[mode], name), (mode, name)
    assert several["none"].backward > several["none"].forward > 0


def test_blocks_of_classes_of_others_are_not_counted():
    with pytest.raises(ValueError, match="Linear is of no model family"):
        block_depths(torch.nn.Linear, {})


def test_counting_leaves_the_model_as_it_was():
    attention = F.scaled_dot_product_attention
    model, inputs = real(TINY, "none")
    before = model(**inputs)
    run(Model, TINY, SMALL, torch.float32)
    assert F.scaled_dot_product_attention is attention
    assert torch.equal(model(**inputs), before)


@pytest.mark.slow
def test_thirteen_billion_parameters_are_counted_in_seconds():
    config, sample = complete({}), Sample(20, 60, 96, 256)
    counted = count(Model, config, sample, torch.bfloat16).counts("full")
    assert sum(formulas.tokens(config, sample)) == 57_856
    assert formulas.parameters(config) == pytest.approx(12_821_012_544, rel=0.01)
    assert formulas.forward_flops(config, sample) == pytest.approx(counted.forward, rel=0.01)
    assert formulas.saved_bytes(config, sample, 2, "full") == pytest.approx(counted.saved, rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose allocator is asked")
@pytest.mark.parametrize("mode", MODES)
def test_the_allocator_of_a_gpu_agrees_within_a_tenth(mode):
    config = WIDE | {"num_layers": 4, "num_single_layers": 8, "num_attention_heads": 12}
    sample, dtype = Sample(9, 32, 48, 64), torch.bfloat16
    counted = count(Model, config, sample, dtype).counts(mode)
    model = build_on_meta(Model, config, dtype).to_empty(device="cuda")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    Checkpointing(mode).apply(model)
    shapes = _inputs(model, sample, dtype)
    inputs = {k: None if x is None else torch.rand(x.shape, device="cuda").to(x.dtype) for k, x in shapes.items()}
    inputs["encoder_attention_mask"] = shapes["encoder_attention_mask"]
    model(**inputs).sum().backward()  # libraries allocate their workspaces
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model(**inputs).sum().backward()
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(counted.peak, rel=0.1)


def test_a_reference_is_one_frame_more():
    """Of 11 frames with it in place of 10: a tenth more in the layers, and attention's square."""
    plain = count(Model, TINY, SMALL, torch.bfloat16).counts().forward
    more = count(Model, TINY, replace(SMALL, reference=True), torch.bfloat16).counts().forward / plain
    tokens = 10 * 8 * 12 + 20
    assert 1 + 0.9 * 96 / tokens < more < (1 + 96 / tokens) ** 2


@pytest.mark.slow
def test_an_adapter_spares_the_gradients_of_the_weights_and_keeps_less():
    whole = count(Model, WIDE, SMALL, torch.bfloat16)
    adapted, exact = (of(Model, WIDE, SMALL, torch.bfloat16, LoRA(8)) for of in (count, run))
    for mode in MODES:
        for name in ("forward", "backward", "saved", "peak"):  # the input of the first block of six has no gradient
            assert getattr(adapted.counts(mode), name) == pytest.approx(getattr(exact[mode], name), rel=0.1)
    few, all_ = adapted.counts("full"), whole.counts("full")
    assert all_.forward < few.forward
    # Of a layer's three products, that for the weight's gradient is not computed.
    assert few.backward < 0.85 * all_.backward
    assert few.saved <= 1.01 * all_.saved
