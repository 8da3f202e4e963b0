"""A resumed run equals the uninterrupted one, bit for bit (in one process; test_kill.py kills real ones)."""

import pytest
import torch

from icve.data.share import batches_done
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.ema import EMA
from icve.training.optimization.schedule import Schedule
from tests.training.conftest import tiny_transformer

STEPS, STOP = 8, 5


def run(make_module, make_trainer, make_data, losses, folder, steps, ckpt_path=None, stop=None, **options):
    transformer = tiny_transformer(4, options.pop("family", "hunyuan_video"))
    module, data = (
        make_module(schedule=Schedule(warmup_steps=6), seed=4, transformer=transformer, instruction_dropout=0.5),
        make_data(validation=1),
    )
    ema = EMA(decay=0.9)
    trainer = make_trainer(steps, [losses, ema, Checkpoints(every_n_steps=STOP)], folder, **options)
    if stop is not None:

        def stop_there(*args):
            trainer.should_stop = trainer.global_step == stop

        module.on_train_batch_end = stop_there
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, ema, trainer


@pytest.mark.parametrize(
    ("how", "accumulate", "interval", "family"),
    [
        ("checkpoint in passing", 2, 2, "hunyuan_video"),
        ("checkpoint in passing", 1, STOP, "hunyuan_video"),
        ("length of the stage", 2, STOP, "hunyuan_video"),
        ("stopped early", 2, 2, "hunyuan_video"),
        ("stopped early", 1, STOP, "hunyuan_video"),
        ("stopped early", 2, 2, "wan"),
    ],
)
def test_resumed_equals_uninterrupted(
    make_module, make_trainer, make_data, make_losses, tmp_path, how, accumulate, interval, family
):
    options = {"family": family, "accumulate_grad_batches": accumulate, "val_check_interval": interval * accumulate}
    parts = make_module, make_trainer, make_data
    whole = make_losses()
    module, ema, trainer = run(*parts, whole, tmp_path / "whole", STEPS, **options)

    if how == "checkpoint in passing":
        checkpoint = tmp_path / "whole" / "checkpoints" / f"step-{STOP:06d}"
    else:
        ends = {"steps": STOP} if how == "length of the stage" else {"steps": STEPS, "stop": STOP}
        first = make_losses()
        run(*parts, first, tmp_path / "part", **ends, **options)
        assert first.lines == whole.lines[: STOP * accumulate]
        checkpoint = tmp_path / "part" / "checkpoints" / "last"
    rest = make_losses()
    again, ema_again, trainer_again = run(*parts, rest, tmp_path / "rest", STEPS, ckpt_path=checkpoint, **options)

    assert rest.lines == whole.lines[STOP * accumulate :]
    # Validation happens at the same steps with the same result; the one due at the checkpoint's own step once more, as
    # the run that wrote it may not have come to it.
    assert rest.validated == [entry for entry in whole.validated if entry[0] >= STOP]
    assert trainer_again.global_step == trainer.global_step == STEPS
    for name, weights in module.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
    assert ema.updates == ema_again.updates
    assert all(torch.equal(ema.shadow[name], ema_again.shadow[name]) for name in ema.shadow)
    states = [t.optimizers[0].state_dict() for t in (trainer, trainer_again)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, entries in states[0]["state"].items():
        assert all(torch.equal(value, states[1]["state"][index][name]) for name, value in entries.items())
    assert batches_done(trainer_again) == STEPS * accumulate


def test_resumed_twice(make_module, make_trainer, make_data, make_losses, tmp_path):
    parts = make_module, make_trainer, make_data
    whole, pieces = make_losses(), make_losses()
    run(*parts, whole, tmp_path / "whole", 9, accumulate_grad_batches=2)
    checkpoint = None
    for steps in (2, 5, 9):
        run(*parts, pieces, tmp_path / "pieces", steps, ckpt_path=checkpoint, accumulate_grad_batches=2)
        checkpoint = tmp_path / "pieces" / "checkpoints" / "last"
    assert pieces.lines == whole.lines
