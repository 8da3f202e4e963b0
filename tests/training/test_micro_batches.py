"""A step is the same however its batch is split over micro-batches, and resumes within the stream."""

from functools import partial

import pytest
import torch

from icve.data.paired_edits import PairedEditsDataModule
from icve.data.share import batches_done
from icve.flow import TimestepDensity
from icve.models.loading import load_transformer
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.monitor import TrainingMonitor
from tests.training.runs import fit, steps, strategy

STEPS = 3
# Its steps are in proportion to the gradient: they show a wrong factor, which Adam hides.
SGD = partial(torch.optim.SGD, lr=0.1)


def run(make_module, make_trainer, manifest, folder, passes, length=STEPS, ckpt_path=None, **sizes):
    data = PairedEditsDataModule(str(manifest), [[32, 32, 5]], seed=3, **sizes)
    # The strata are those of the whole step, of which a micro-batch has some.
    law = {"stratified": True, "density": TimestepDensity(shift=3.0, uniform_share=0.2)}
    module = make_module(instruction_dropout=0.3, optimizer=SGD, **law)
    callbacks = [TrainingMonitor(), Checkpoints(every_n_steps=2, keep_last=0)]
    trainer = make_trainer(length, callbacks, folder, accumulate_grad_batches=passes)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    assert batches_done(trainer) == length * passes
    return module, steps(folder)


# 16 tokens a sample. Six samples: whole; two by two; in four parts of 1, 2, 1, 2; as 3 + 3 in six passes; as 2 + 2 + 2.
SPLITS = [
    {"batch_size": 2, "passes": 3},
    {"batch_size": 1, "passes": 6, "tokens_per_micro_batch": 48},
    {"batch_size": 1, "passes": 6, "tokens_per_micro_batch": 47},
    {"batch_size": 1, "passes": 4, "tokens_per_batch": 96},
    {"batch_size": 1, "passes": 5, "tokens_per_batch": 96, "tokens_per_micro_batch": 70},
]


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_of_a_batch_changes_nothing(make_module, make_trainer, tiny_manifest, tmp_path, split):
    parts = make_module, make_trainer, tiny_manifest
    start = make_module().state_dict()
    whole, lines = run(*parts, tmp_path / "whole", passes=1, batch_size=6)
    again, parted = run(*parts, tmp_path / "split", **split)
    for step in range(STEPS):
        (line,) = [line for line in lines if line["step"] == step]
        of_step = [line for line in parted if line["step"] == step]
        assert all(line["ids"] for line in of_step)
        assert [name for part in of_step for name in part["ids"]] == line["ids"]
        mean = sum(len(part["ids"]) * part["loss"] for part in of_step) / 6
        assert mean == pytest.approx(line["loss"], rel=1e-5)
    moved = 0.0
    for name, weights in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weights, rtol=1e-4, atol=1e-6)
        moved = max(moved, float((weights - start[name]).abs().max()))
    assert moved > 1e-3


def test_a_run_with_empty_micro_batches_resumes(make_module, make_trainer, tiny_manifest, tmp_path):
    parts = make_module, make_trainer, tiny_manifest
    split = {"batch_size": 1, "passes": 4, "tokens_per_micro_batch": 48}  # two passes of two samples
    whole, lines = run(*parts, tmp_path / "whole", length=5, **split)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000002"
    again, rest = run(*parts, tmp_path / "rest", length=5, ckpt_path=checkpoint, **split)
    assert rest == [line for line in lines if line["step"] >= 2]
    assert len(rest) == 6
    assert all(torch.equal(weights, again.state_dict()[name]) for name, weights in whole.state_dict().items())


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sequence_parallel", [1, 2])
def test_processes_with_empty_micro_batches_train_as_one(tiny_yaml, tmp_path, sequence_parallel):
    optimizer = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1", "--trainer.max_steps=3"]
    optimizer += ["--model.objective.init_args.stratified=true"]
    fit(tiny_yaml, tmp_path / "one", *optimizer, "--data.init_args.batch_size=4")
    split = ["--data.init_args.batch_size=1", "--trainer.accumulate_grad_batches=4"]
    split += ["--data.init_args.tokens_per_micro_batch=16", "--trainer.val_check_interval=16"]
    fit(tiny_yaml, tmp_path / "two", *optimizer, *split, *strategy("DDPUlyssesStrategy", 2, sequence_parallel))
    # One sample at once on each process, or on both together.
    lines = steps(tmp_path / "two")
    assert {len(line["ids"]) for line in lines} == {2 // sequence_parallel}
    assert [name for line in lines for name in line["ids"]] == [
        name for line in steps(tmp_path / "one") for name in line["ids"]
    ]
    weights = [load_transformer(tmp_path / run / "checkpoints" / "last").state_dict() for run in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)
