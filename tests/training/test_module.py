import math
from functools import partial

import pytest
import torch

from icve.data.edit_region import region_from_mask
from icve.flow import TimestepDensity, flow_loss, interpolate
from icve.models.weightless.dct import DCTCodec
from icve.training.checkpoints.starting_weights import check_shapes, trained_shapes
from icve.training.checkpoints.state_dicts import SHAPES
from icve.training.module import InContextEditingModule
from icve.training.objectives.in_context import InContext
from icve.training.optimization.schedule import Schedule
from icve.training.randomness import generator
from tests.texts import assert_same_text
from tests.training.conftest import as_loader, cached_texts, tiny_transformer


class Spy(torch.nn.Module):
    """Remembers what the transformer was called with."""

    def __init__(self, transformer):
        super().__init__()
        self.inner, self.calls = transformer, []

    @property
    def config(self):
        return self.inner.config

    @property
    def patch(self):
        return self.inner.patch

    def arguments(self, *inputs):
        return self.inner.arguments(*inputs)

    def named(self, output):
        return self.inner.named(output)

    def forward(self, **kwargs):
        self.calls.append(kwargs)
        return self.inner(**kwargs)


def train_one_step(make_trainer, module, data, **options):
    trainer = make_trainer(1, **options)
    trainer.fit(module, datamodule=data)
    return trainer


def test_the_step_is_the_papers(make_module, make_trainer, make_data, make_losses):
    spy, losses = Spy(tiny_transformer()), make_losses()
    module = make_module(transformer=spy, stage="s", seed=3, instruction_dropout=0.0)
    start = {name: p.clone() for name, p in spy.inner.state_dict().items()}
    data = make_data()
    train_one_step(make_trainer, module, data, callbacks=[losses])
    (call,) = spy.calls
    batch = data.batch(0)
    x0 = module.codec.encode(batch["target"].float() / 127.5 - 1)
    z_source = module.codec.encode(batch["source"].float() / 127.5 - 1)
    sigma = torch.tensor([module.objective.density.sample(generator(3, "s", 0, i, "sigma")) for i in range(2)])
    noise = torch.stack([torch.randn(x0.shape[1:], generator=generator(3, "s", 0, i, "noise")) for i in range(2)])
    assert torch.equal(call["hidden_states"], interpolate(x0, noise, sigma))
    assert torch.equal(call["source_hidden_states"], z_source)
    assert torch.equal(call["timestep"], 1000.0 * sigma)
    assert call["guidance"] is None
    text = module.text_encoder.encode(batch["instruction"])
    assert torch.equal(call["encoder_hidden_states"], text.embeddings)
    assert torch.equal(call["encoder_attention_mask"], text.mask)
    assert torch.equal(call["pooled_projections"], text.extras["pooled"])
    twin = tiny_transformer()
    twin.load_state_dict(start)
    expected = flow_loss(twin(**call), x0, noise, sigma).mean()
    assert losses.lines[0][0] == pytest.approx(expected.item(), rel=1e-6)


def test_stratified_levels_are_spread_over_the_step(make_module, make_trainer, make_data):
    """Two micro-batches of two: one level in each quarter of the law, that for targets of two tokens."""
    spy = Spy(tiny_transformer())
    module = make_module(transformer=spy, stratified=True, density=TimestepDensity(shift=5.0, shift_tokens=8))
    make_trainer(3, accumulate_grad_batches=2).fit(module, datamodule=make_data())
    levels = torch.cat([call["timestep"] / 1000 for call in spy.calls]).reshape(3, 4)
    law = TimestepDensity(shift=2.5)
    quarters = [[int(4 * law.share_below(float(level))) for level in step] for step in levels]
    assert [sorted(step) for step in quarters] == [[0, 1, 2, 3]] * 3
    assert len(set(map(tuple, quarters))) > 1


def test_guidance_is_embedded_when_the_model_has_it(make_module, make_trainer, make_data):
    spy = Spy(tiny_transformer(guidance_embeds=True))
    train_one_step(make_trainer, make_module(transformer=spy), make_data())
    assert spy.calls[0]["guidance"].tolist() == [1000.0, 1000.0]


def test_only_the_instruction_is_dropped(make_module, make_trainer, make_data):
    spy = Spy(tiny_transformer())
    module = make_module(transformer=spy, instruction_dropout=1.0)
    train_one_step(make_trainer, module, make_data())
    null = module.text_encoder.encode([""])
    assert torch.equal(spy.calls[0]["encoder_hidden_states"], null.embeddings.expand(2, -1, -1))
    assert spy.calls[0]["encoder_attention_mask"].sum() == 2 * null.mask.sum()
    assert spy.calls[0]["source_hidden_states"].abs().sum() > 0


def test_the_dropout_rate_is_the_one_asked_for(make_module, make_trainer, make_data):
    module = make_module(instruction_dropout=0.3)
    make_trainer(1).fit(module, datamodule=make_data())
    told = module.objective.instructions({"instruction": ["make it red"] * 2000}, module.draws(2000))
    assert 0.26 < told.count("") / 2000 < 0.34


def test_draws_follow_the_position_in_the_global_batch(make_module, make_trainer, make_data):
    # Two micro-batches of two draw what one batch of four draws.
    draws = []
    for size, accumulate in ((4, 1), (2, 2)):
        module = make_module()
        spied = spy_on_draws(module)
        trainer = make_trainer(2, accumulate_grad_batches=accumulate)
        trainer.fit(module, datamodule=make_data(batch_size=size))
        draws.append(torch.cat([found.normal("noise", torch.zeros(size, 3, 4)) for found in spied]))
    assert torch.equal(draws[0], draws[1])
    assert len(draws[0].flatten(1).unique(dim=0)) == 8


def spy_on_draws(module):
    seen, draws = [], module.draws

    def spied(*samples):
        seen.append(draws(*samples))
        return seen[-1]

    module.draws = spied
    return seen


def test_the_edited_region_weighs_more(make_module, make_trainer, make_data):
    module = make_module(edit_weight=5.0)
    x0 = torch.zeros(2, 16, 2, 2, 2)
    mask = torch.zeros(2, 1, 5, 16, 16, dtype=torch.bool)
    mask[1, 0, 3, 2, 9] = True  # in the second latent frame, above on the right
    expected = torch.ones(2, 1, 2, 2, 2)
    expected[1, 0, 1, 0, 1] = 5.0
    assert torch.equal(module.objective.loss_weight(mask, x0, x0), expected)
    z = x0.clone()
    z[:, :, 1, 0, 0] = 1.0
    assert module.objective.loss_weight(None, z, x0)[:, 0, 1, 0, 0].tolist() == [5.0, 5.0]
    assert module.objective.loss_weight(None, x0[:, :, :1], x0) is None  # a source of another length has no difference
    assert make_module().objective.loss_weight(mask, x0, x0) is None


def test_channels_may_weigh_as_their_pixels_do(make_module, make_data):
    """With exponent 2 and an orthonormal codec, the weighted error of latents is the squared error of the pixels."""
    module = make_module(pixel_weight=2.0)
    x0 = torch.zeros(2, 16, 2, 2, 2)
    weight = module.objective.loss_weight(None, x0, x0)
    error = torch.randn(1, 16, 1, 2, 2).expand(1, 16, 2, 2, 2).clone()
    pixels = module.codec.decode(error)[:, :, 1:].square().sum()
    torch.testing.assert_close((error[:, :, 1:].square() * weight).sum(), pixels, rtol=1e-4, atol=1e-4)
    both = make_module(pixel_weight=2.0, edit_weight=3.0)
    mask = make_data(mask=True).batch(0)["mask"]
    assert both.objective.loss_weight(mask, x0, x0).shape == (2, 16, 2, 2, 2)


def test_latents_are_taken_as_they_are(make_module):
    latents = torch.randn(1, 16, 2, 2, 2, dtype=torch.float64)
    assert torch.equal(make_module().encode_videos(latents)[0], latents.float())


@pytest.mark.parametrize("dropped", [[False, False], [False, True], [True, False], [True, True]])
def test_cached_texts_are_the_text_encoders(make_module, make_data, dropped):
    module = make_module()
    batch = make_data().batch(0)
    told = ["" if drop else words for words, drop in zip(batch["instruction"], dropped, strict=True)]
    expected = module.condition(batch, told)
    module.text_encoder.encode = None  # a cached batch does not need it
    assert_same_text(module.condition(cached_texts(make_module(), batch), told), expected)


@pytest.mark.parametrize("changed", [[0], [1], [0, 1]])
def test_instructions_without_a_cached_text_are_encoded(make_module, make_data, changed):
    """As a transform leaves them: with None in place of the embedding of what they were."""
    module, encoder = make_module(), make_module().text_encoder
    batch = cached_texts(module, make_data().batch(0))
    for number in changed:
        batch["instruction"][number], batch["text"][number] = "keep the video as it is", None
    encoded = []
    module.text_encoder.encode = lambda texts: (encoded.extend(texts), encoder.encode(texts))[1]
    assert_same_text(module.condition(batch, batch["instruction"]), encoder.encode(batch["instruction"]))
    assert encoded == ["keep the video as it is"]
    assert module._places.keys() == {"text_encoder"}


def test_a_cached_region_counts_as_its_mask(make_module, make_data):
    module = make_module(edit_weight=5.0, pixel_weight=1.0)
    mask = make_data(mask=True).batch(0)["mask"]
    x0 = torch.zeros(2, 16, 2, 2, 2)
    region = region_from_mask(mask, x0.shape[2:])
    assert torch.equal(module.objective.loss_weight(None, x0, x0, region), module.objective.loss_weight(mask, x0, x0))


def test_frozen_parts_come_to_the_device_where_they_are_used(make_module, make_trainer, make_data):
    def moved(*, cached):
        module, data, calls = make_module(), make_data(), []
        batches = [data.batch(n) for n in range(3)]
        if cached:
            for batch in batches:
                batch |= {role: module.codec.encode(batch[role].float() / 127.5 - 1) for role in ("source", "target")}
            batches = [cached_texts(module, batch) for batch in batches]
        data.train_dataloader = lambda: as_loader(batches)
        for part in (module.codec, module.text_encoder):
            part.to = lambda *args, part=part: calls.append(type(part).__name__)
        make_trainer(2).fit(module, datamodule=data)
        return calls

    assert moved(cached=True) == []
    assert moved(cached=False) == ["DCTCodec", "HashedTextEncoder"]


def test_the_data_module_is_told_which_encoders_there_are(make_module, make_trainer, make_data):
    data = make_data()

    def refuse(frozen):
        raise ValueError(f"made with another encoder than {sorted(frozen)}")

    data.check_encoders = refuse
    with pytest.raises(ValueError, match=r"made with another encoder than \['codec', 'text_encoder'\]"):
        make_trainer(1).fit(make_module(), datamodule=data)


def test_frozen_parts_are_neither_saved_nor_optimised(make_module, make_trainer, make_data):
    module = make_module()
    trainer = train_one_step(make_trainer, module, make_data())
    expected = {f"transformer.{name}" for name in tiny_transformer().state_dict()}
    assert set(module.state_dict()) == expected
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.transformer.parameters()}
    assert not module.codec.training
    assert not module.text_encoder.training
    assert not any(p.requires_grad for part in (module.codec, module.text_encoder) for p in part.parameters())


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_precisions(make_module, make_trainer, make_data, make_losses, device, precision):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    losses = make_losses()
    spy = Spy(tiny_transformer())
    module = make_module(transformer=spy)
    make_trainer(2, callbacks=[losses], precision=precision, accelerator=device).fit(
        module, datamodule=make_data(validation=1)
    )
    assert all(math.isfinite(loss) for loss, _, _ in losses.lines)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in spy.parameters()} == {dtype}
    assert spy.calls[0]["hidden_states"].dtype == dtype
    # The frozen parts are outside of it: latents of the source are exact up to the last cast.
    exact = module.codec.cpu().encode(make_data().batch(0)["source"].float() / 127.5 - 1)
    assert torch.equal(spy.calls[0]["source_hidden_states"].cpu(), exact.to(dtype))


def test_clipping_and_warm_up(make_module, make_trainer, make_data, make_losses):
    losses = make_losses()
    module = make_module(schedule=Schedule(warmup_steps=4))
    norms = []
    module.on_before_zero_grad = lambda optimizer: norms.append(
        torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item()
    )
    make_trainer(6, callbacks=[losses], gradient_clip_val=1e-3).fit(module, datamodule=make_data())
    # The rate after a step is the next one's.
    assert [round(lr, 6) for _, _, lr in losses.lines] == [0.005, 0.0075, 0.01, 0.01, 0.01, 0.01]
    assert norms[1:] == pytest.approx([1e-3] * 5, rel=1e-3)


def test_mistakes_are_named(make_module):
    with pytest.raises(ValueError, match=r"model\.stage"):
        make_module(stage="")
    with pytest.raises(ValueError, match="instruction_dropout"):
        make_module(instruction_dropout=1.5)
    with pytest.raises(ValueError, match="edit_weight"):
        make_module(edit_weight=0.0)
    with pytest.raises(ValueError, match="channel_rms, which Linear has not"):
        InContextEditingModule(
            tiny_transformer(),
            {"codec": torch.nn.Linear(1, 1), "text_encoder": torch.nn.Linear(1, 1)},
            InContext(pixel_weight=1.0),
            "s",
            torch.optim.AdamW,
        )
    with pytest.raises(ValueError, match=r"model\.frozen lacks 'text_encoder'"):
        InContextEditingModule(tiny_transformer(), {"codec": DCTCodec()}, InContext(), "s", torch.optim.AdamW)


@pytest.mark.parametrize("kept", ["ranges", "state dict"])
def test_a_checkpoint_of_another_shape_is_not_resumed(make_module, kept):
    transformer = make_module().transformer
    check_shapes(checkpoint := {SHAPES: trained_shapes(transformer), "state_dict": {}}, transformer)
    if kept == "state dict":
        del checkpoint[SHAPES]
        checkpoint["state_dict"] = {f"transformer.{name}": p for name, p in transformer.named_parameters()}
    other = make_module(transformer=tiny_transformer(mlp_ratio=2.0)).transformer
    with pytest.raises(ValueError, match=r"trained another transformer than the configuration's: .*\[\d+.* here; give"):
        check_shapes(checkpoint, other)


def test_an_optimizer_that_cannot_be_built_is_one_sentence(make_module, make_trainer, make_data):
    module = make_module(optimizer=partial(torch.optim.AdamW, lr=-1.0))
    with pytest.raises(ValueError, match=r"^The optimizer cannot be used: Invalid learning rate: -1\.0$"):
        make_trainer(1).fit(module, datamodule=make_data())


def test_weights_of_another_shape_are_refused(make_module, tmp_path):
    other = make_module(transformer=tiny_transformer(num_single_layers=2))
    other.transformer.save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match=r"single_transformer_blocks\.1.* absent here"):
        make_module().load_weights(tmp_path / "transformer")
