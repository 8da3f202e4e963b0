"""Masks and reference pictures in training: what the transformer is shown, what is dropped, and what a run leaves."""

import pytest
import torch

from icve.data.edit_region import region_from_mask
from icve.models.lora import LoRA
from icve.training.callbacks.previews import preview_conditions, preview_samples
from icve.training.callbacks.short_clips import cut_clips
from icve.training.start import Start
from tests.training.conftest import SIZE, TinyPairs, tiny_transformer


class ConditionedPairs(TinyPairs):
    """Random clips with masks, of which every second has a reference."""

    references = True

    def __init__(self, **options):
        super().__init__(mask=True, **options)

    def batch(self, number):
        batch = super().batch(number)
        batch["mask"][..., SIZE // 2 :] = False  # of the whole picture it would say nothing
        g = torch.Generator().manual_seed(number + 5000)
        pictures = torch.randint(0, 256, (self.batch_size, 3, 1, SIZE, SIZE), generator=g, dtype=torch.uint8)
        return batch | {"reference": pictures, "referenced": [n % 2 == 0 for n in range(self.batch_size)]}


@pytest.fixture
def module(make_module):
    return make_module(transformer=tiny_transformer(masks=True), mask_dropout=0.0, reference_dropout=0.0)


def context_of(module, batch, draws=None):
    return module.objective.context(module.denoiser, module.encode(batch, batch["instruction"]), draws)


def test_the_transformer_is_shown_the_region_and_the_reference(module):
    batch = ConditionedPairs().batch(0)
    context = context_of(module, batch)
    region = region_from_mask(batch["mask"], context["source"].shape[2:])
    assert torch.equal(context["mask"], 2.0 * region - 1.0)
    assert torch.equal(context["reference"], module.encode_videos(batch["reference"])[0])
    assert context["referenced"].tolist() == [True, False]
    # A mask of the whole picture says nothing, and a batch without one shows nothing.
    assert not context_of(module, batch | {"mask": torch.ones_like(batch["mask"])})["mask"].any()
    del batch["mask"]
    assert "mask" not in context_of(module, batch)


def test_without_the_options_nothing_is_shown(make_module):
    context = context_of(make_module(), TinyPairs(mask=True).batch(0))
    assert context.keys() == {"source"}


def test_dropout_is_a_function_of_seed_and_position(make_module, make_trainer):
    module = make_module(transformer=tiny_transformer(masks=True), mask_dropout=0.3, reference_dropout=0.6)
    data = ConditionedPairs(batch_size=1)
    make_trainer(1).fit(module, datamodule=data)
    batch = data.batch(0)
    many = {name: v * 1000 if isinstance(v, list) else v.expand(1000, *v.shape[1:]) for name, v in batch.items()}
    draws = module.draws(1000)
    context = context_of(module, many, draws)
    shown = context["mask"].flatten(1).any(1)
    assert 0.64 < shown.float().mean() < 0.76
    assert 0.34 < context["referenced"].float().mean() < 0.46
    again = context_of(module, many, draws)
    assert torch.equal(shown, again["mask"].flatten(1).any(1))
    assert torch.equal(context["referenced"], again["referenced"])


def test_the_loss_without_a_reference_is_that_of_a_batch_without(module, make_trainer):
    data = ConditionedPairs()
    make_trainer(1).fit(module, datamodule=data)
    batch = data.batch(0)
    alone = {name: value for name, value in batch.items() if not name.startswith("reference")}
    draws = module.draws(2)
    losses = [
        module.objective.loss(module.denoiser, module.encode(given, given["instruction"]), draws)
        for given in (batch, alone)
    ]
    torch.testing.assert_close(losses[0].per_sample[1], losses[1].per_sample[1], atol=1e-5, rtol=0)
    assert (losses[0].per_sample[0] - losses[1].per_sample[0]).abs() > 1e-5
    assert losses[0].tokens == losses[1].tokens + 1  # a token per frame of this size


def test_a_run_trains_the_embedding_and_says_what_it_takes(module, make_trainer, make_losses):
    losses = make_losses()
    before = module.transformer.mask_embedder.proj.weight.clone()
    make_trainer(2, [losses], val_check_interval=2).fit(module, datamodule=ConditionedPairs(validation=1))
    assert not torch.equal(before, module.transformer.mask_embedder.proj.weight)
    assert torch.tensor(losses.validated).isfinite().all()
    pipeline = module.pipeline()
    assert pipeline.takes_masks
    assert pipeline.takes_references


def test_weights_that_know_no_masks_are_completed_with_zeros(make_module, tmp_path):
    tiny_transformer().save_pretrained(tmp_path / "plain")
    module = make_module(transformer=tiny_transformer(seed=1, masks=True))
    module.load_weights(tmp_path / "plain")
    assert not module.transformer.mask_embedder.proj.weight.any()
    with torch.device("meta"):
        later = tiny_transformer(masks=True)
    module = make_module(transformer=later)
    module.load_weights(tmp_path / "plain")
    assert not module.transformer.mask_embedder.proj.weight.any()
    assert torch.equal(module.transformer.proj_out.weight, tiny_transformer().proj_out.weight)
    tiny_transformer(masks=True).save_pretrained(tmp_path / "masks")
    with pytest.raises(ValueError, match=r"mask_embedder\.proj\.weight is .* there and .* absent here"):
        make_module().load_weights(tmp_path / "masks")


def test_an_adapter_cannot_teach_masks(make_module, tmp_path):
    tiny_transformer().save_pretrained(tmp_path / "plain")
    module = make_module(transformer=tiny_transformer(masks=True), start=Start(lora=LoRA(2, weights_dtype="float32")))
    module.load_weights(tmp_path / "plain")
    with pytest.raises(ValueError, match="An adapter cannot teach these weights masks"):
        module.add_adapter(tmp_path / "plain")


def test_previews_and_short_clips_keep_what_is_given(module):
    batch = ConditionedPairs().batch(0)
    first, second = preview_samples(batch, 2)
    source = module.encode_videos(batch["source"])[0]
    given = preview_conditions(first, module, source[:1])
    assert torch.equal(given["mask"], region_from_mask(batch["mask"][:1], source.shape[2:]))
    assert torch.equal(given["reference"], module.encode_videos(batch["reference"][:1])[0])
    assert "reference" not in preview_conditions(second, module, source[:1])
    short = batch | cut_clips(batch, 1, module.grid)
    assert (short["mask"].shape[2], short["reference"].shape[2]) == (1, 1)
