import copy
import math

import pytest
import torch

from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.ema import EMA
from icve.training.callbacks.nonfinite import SkipNonFinite, TrainingDiverged


def state(trainer, module, ema):
    optimizer = trainer.optimizers[0].state_dict()["state"]
    return copy.deepcopy((module.transformer.state_dict(), ema.shadow, optimizer, ema.updates))


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return all(map(equal, a, b)) if isinstance(a, tuple) else a == b


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_a_skipped_step_changes_nothing_and_the_next_one_trains(make_module, make_trainer, make_data, options):
    guard, ema, module, states = SkipNonFinite(), EMA(decay=0.9), make_module(), []
    trainer = make_trainer(4, callbacks=[guard, ema], **options)
    accumulate = options.get("accumulate_grad_batches", 1)

    def note(outputs, batch, batch_idx):
        if (batch_idx + 1) % accumulate == 0:
            states.append(state(trainer, module, ema))

    module.on_train_batch_end = note
    # With accumulation only the first micro-batch of the step is bad.
    trainer.fit(module, datamodule=make_data(poison=[2 * accumulate]))
    assert guard.skipped == 1
    assert trainer.global_step == 4
    assert equal(states[2], states[1])
    assert not equal(states[3][0], states[2][0])
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert states[3][3] == 3


def test_a_bad_gradient_of_a_good_loss_is_seen_too(make_module, make_trainer, make_data):
    guard, module = SkipNonFinite(), make_module()
    before = copy.deepcopy(module.transformer.state_dict())
    module.transformer.proj_out.weight.register_hook(lambda gradient: gradient / 0.0)
    make_trainer(2, callbacks=[guard]).fit(module, datamodule=make_data())
    assert guard.skipped == 2
    assert equal(before, module.transformer.state_dict())


def test_a_bad_loss_of_a_good_gradient_is_seen_too(make_module, make_trainer, make_data):
    guard, module = SkipNonFinite(), make_module()
    step = module.training_step

    def with_infinite_loss(batch, batch_idx):
        result = step(batch, batch_idx)
        return result | {"loss": result["loss"] + math.inf}

    module.training_step = with_infinite_loss
    make_trainer(1, callbacks=[guard]).fit(module, datamodule=make_data())
    assert guard.skipped == 1


def test_several_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(
    make_module, make_trainer, make_data, make_losses, tmp_path
):
    losses = make_losses()
    trainer = make_trainer(9, callbacks=[SkipNonFinite(patience=3), Checkpoints(2), losses])
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row.*last good checkpoint is .*step-000004") as error:
        trainer.fit(make_module(), datamodule=make_data(poison=[1, 4, 5, 6, 7, 8]))
    assert str(tmp_path) in str(error.value)
    assert len(losses.lines) == 6  # a good step in between starts the count again


def test_without_a_checkpoint_it_says_so(make_module, make_trainer, make_data):
    trainer = make_trainer(9, callbacks=[SkipNonFinite(patience=1)])
    with pytest.raises(TrainingDiverged, match="no checkpoint was written yet"):
        trainer.fit(make_module(), datamodule=make_data(poison=[0]))


def test_the_count_survives_a_resume(make_module, make_trainer, make_data, tmp_path):
    make_trainer(3, callbacks=[SkipNonFinite(), Checkpoints(3)]).fit(make_module(), datamodule=make_data(poison=[1]))
    guard = SkipNonFinite()
    make_trainer(4, callbacks=[guard, Checkpoints(9)]).fit(
        make_module(), datamodule=make_data(), ckpt_path=tmp_path / "checkpoints" / "step-000003"
    )
    assert guard.skipped == 1
