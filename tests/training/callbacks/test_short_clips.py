import pytest
import torch

from icve.data.latent_grid import LatentGrid
from icve.training.callbacks.short_clips import ShortClips, cut_clips


def lengths(module):
    """Frames of the latents, source's and target's, of every step that the module takes from now on."""
    seen = []

    def look(transformer, _, call):
        seen.append((call["source_hidden_states"].shape[2], call["hidden_states"].shape[2]))

    module.transformer.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def test_the_first_part_of_a_stage_sees_the_beginning_of_every_clip(make_module, make_trainer, make_data):
    module = make_module()
    seen = lengths(module)
    make_trainer(4, callbacks=[ShortClips(frames=1, share=0.5)]).fit(module, datamodule=make_data(frames=5, mask=True))
    assert seen == [(1, 1), (1, 1), (2, 2), (2, 2)]


def test_a_resumed_run_goes_on_with_the_length_of_its_step(make_module, make_trainer, make_data, tmp_path):
    from icve.training.callbacks.checkpoints import Checkpoints

    def train(**options):
        module = make_module()
        seen = lengths(module)
        callbacks = [ShortClips(share=0.5), Checkpoints(every_n_steps=1)]
        trainer = make_trainer(4, callbacks=callbacks, limit_train_batches=None)
        trainer.fit(module, datamodule=make_data(frames=5), **options)
        return seen

    assert train() == [(1, 1), (1, 1), (2, 2), (2, 2)]
    assert train(ckpt_path=tmp_path / "checkpoints" / "step-000003") == [(2, 2)]


def test_validation_sees_whole_clips(make_module, make_trainer, make_data):
    module = make_module()
    seen = lengths(module)
    make_trainer(1, callbacks=[ShortClips(share=1.0)], val_check_interval=1).fit(
        module, datamodule=make_data(frames=5, validation=1)
    )
    assert seen[0] == (1, 1)
    assert set(seen[1:]) == {(2, 2)}


def test_latents_masks_and_regions_are_cut_alike():
    pixels = {
        "source": torch.zeros(2, 3, 9, 16, 16, dtype=torch.uint8),
        "target": torch.ones(2, 3, 9, 16, 16, dtype=torch.uint8),
        "mask": torch.ones(2, 1, 9, 16, 16, dtype=torch.bool),
        "instruction": ["a", "b"],
    }
    cut = cut_clips(pixels, 5, LatentGrid())
    assert {name: tensor.shape[2] for name, tensor in cut.items()} == {"mask": 5, "source": 5, "target": 5}
    latents = {"source": torch.zeros(2, 16, 3, 2, 2), "target": torch.zeros(2, 16, 3, 2, 2)}
    cut = cut_clips(latents | {"region": torch.ones(2, 1, 3, 2, 2, dtype=torch.bool)}, 5, LatentGrid())
    assert {name: tensor.shape[2] for name, tensor in cut.items()} == {"region": 2, "source": 2, "target": 2}
    assert cut_clips({"instruction": [], "id": []}, 1, LatentGrid()) == {}  # a step may need fewer passes than others
    assert cut_clips(pixels, 33, LatentGrid())["source"].shape[2] == 9


@pytest.mark.parametrize("options", [{"frames": 4}, {"frames": 0}, {"share": 1.5}, {"share": -0.1}])
def test_values_out_of_range_are_refused(make_module, options):
    with pytest.raises(ValueError, match="ShortClips"):
        ShortClips(**options).setup(None, make_module(), "fit")
