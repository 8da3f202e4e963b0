"""A run goes on with another number of processes, another strategy and other micro-batches, from any checkpoint."""

import pytest
import torch

from icve.cli.main import main
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.micro_steps import STAGE_KEY, resplit
from tests.training.conftest import as_wan
from tests.training.runs import run_in_turn, steps, strategy

FAMILIES = ("hunyuan_video", "wan")
VALIDATED = "--trainer.val_check_interval=2"  # first of all where the run goes on
LEGS = {  # up to which step, in how many processes, and how
    2: (4, strategy("DeepSpeedUlyssesStrategy", 4, 2, stage=2)),
    4: (2, [*strategy("DeepSpeedUlyssesStrategy", 2, 2, stage=3), VALIDATED]),
    6: (1, ["--trainer.accumulate_grad_batches=2", "--data.init_args.batch_size=1", "--trainer.val_check_interval=8"]),
    8: (2, [*strategy("FSDPUlyssesStrategy", 2, 1), VALIDATED]),
}


def assert_same_state(one, other):
    states = [CheckpointFolders().load_checkpoint(path) for path in (one, other)]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    for name, weights in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], weights, rtol=1e-4, atol=1e-5)
    shadows = [state["callbacks"]["EMA"]["shadow"] for state in states]
    for name, average in shadows[0].items():
        torch.testing.assert_close(shadows[1][name], average, rtol=1e-4, atol=1e-5)
    optimizers = [state["optimizer_states"][0] for state in states]
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    assert optimizers[0]["state"].keys() == optimizers[1]["state"].keys()
    for index, entries in optimizers[0]["state"].items():
        assert entries.keys() == optimizers[1]["state"][index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for entry, values in entries.items():
            torch.testing.assert_close(optimizers[1]["state"][index][entry], values, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(500)
def test_four_processes_then_two_then_one_then_two_are_one_run(tiny_yaml, tiny_wan, tmp_path):
    text = tiny_yaml.read_text().replace("icve.training.optimization.optimizers.MuonAdamW", "torch.optim.AdamW")
    # A gradient that is but rounding, which differs with the number of processes, is not made a whole step of.
    text = text.replace("init_args: {lr: 0.01}", "init_args: {lr: 0.01, eps: 1.0e-6}")
    assert "eps" in text
    # Checkpoints of the parts are written while training goes on.
    for name, kept in (("whole", "keep_last: 0"), ("parts", "keep_last: 0, asynchronous: true")):
        for family in FAMILIES:
            config = tmp_path / f"{family}-{name}.yaml"
            config.write_text(text.replace("keep_last: 0", kept))
            if family == "wan":
                as_wan(config, tiny_wan[0])

    def command(family, name, *words):
        run = tmp_path / f"{family}-{name}"
        resumed = [f"--ckpt_path={run}"] if run.exists() else []
        return ["fit", "-c", f"{run}.yaml", f"--trainer.default_root_dir={run}", *words, *resumed]

    for family in FAMILIES:
        assert main(command(family, "whole", "--trainer.max_steps=8")) == 0
    for step, (processes, how) in LEGS.items():
        commands = [command(family, "parts", *how, f"--trainer.max_steps={step}") for family in FAMILIES]
        if processes > 1:
            run_in_turn(commands, processes, tmp_path, seconds=200)
        else:
            assert [main(words) for words in commands] == [0, 0]
        for family in FAMILIES:
            name = f"checkpoints/step-{step:06d}"
            assert_same_state(tmp_path / f"{family}-whole" / name, tmp_path / f"{family}-parts" / name)
    for family in FAMILIES:
        parts = steps(tmp_path / f"{family}-parts")
        for line in steps(tmp_path / f"{family}-whole"):
            own = [part for part in parts if part["step"] == line["step"]]  # of the accumulated micro-batches
            assert [name for part in own for name in part["ids"]] == line["ids"]
            assert sum(part["loss"] for part in own) / len(own) == pytest.approx(line["loss"], rel=1e-4)


def test_micro_batches_are_counted_anew():
    progress = {which: {"ready": 6, "processed": 6, "completed": 5} for which in ("total", "current")}
    loops = {"fit_loop": {"epoch_loop.batch_progress": progress}}
    checkpoint = {STAGE_KEY: {"micro_steps": 2}, "loops": loops}
    resplit(checkpoint, 2)
    assert progress["total"] == progress["current"] == {"ready": 6, "processed": 6, "completed": 5}
    resplit(checkpoint, 5)
    assert progress["total"] == progress["current"] == {"ready": 15, "processed": 15, "completed": 14}
    progress["total"]["processed"] = 9
    with pytest.raises(ValueError, match=r"middle of a step .1 of 4 micro-batches.*accumulate_grad_batches 4"):
        resplit({**checkpoint, STAGE_KEY: {"micro_steps": 4}}, 2)
