"""A run that hangs says who keeps it waiting, and ends."""

import contextlib
import os
import signal
import time

import pytest
import torch

from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.heartbeats import Beat, Heartbeats
from icve.training.callbacks.stall_report import headline, named, stacks, waited_for
from icve.training.callbacks.stalls import StallDetector, Watch
from tests.training.runs import start


def beat(place="step (icve/training/module.py:1)", operation=None, collectives=7):
    return Beat("host", 1, "a training batch", place, operation, collectives, f"  in {place}\n")


WAITING = beat("wait", "all_reduce (torch/distributed/distributed_c10d.py:9)", 8)


def test_who_is_waited_for():
    assert list(waited_for({0: WAITING, 1: beat(), 2: WAITING}, set())) == [1]
    # Of those that lag, one waits itself for the other: they share a sample's tokens.
    assert list(waited_for({0: WAITING, 1: beat(operation="all_to_all", collectives=7), 2: beat()}, set())) == [2]
    # The process that is stopped, whatever the others are doing.
    assert list(waited_for({0: beat(), 2: WAITING}, {1})) == [1]
    # Without counts, the one that is outside of the operation.
    unknown = {0: beat(operation="all_reduce", collectives=None), 1: beat(collectives=None)}
    assert list(waited_for(unknown, set())) == [1]
    assert waited_for({0: WAITING, 1: WAITING}, set()) == {}
    assert waited_for({0: beat(), 1: beat()}, set()) == {}


def test_the_report_names_ranks_operations_and_stacks_once():
    beats = {0: WAITING, 1: beat(), 2: WAITING, 3: WAITING}
    text = headline(beats, set())
    assert "wait for rank 1 (in step (icve/training/module.py:1), 8 collectives begun elsewhere and 7 here)" in text
    assert "Waiting: ranks 0, 2-3 in all_reduce" in text
    assert "the network or a device may be at fault" in headline({0: WAITING, 1: WAITING}, set())
    text = stacks(beats, {4})
    assert text.count("  in wait\n") == 1
    assert "ranks 0, 2-3, in a training batch" in text
    assert "rank 4, left no heartbeat" in text
    assert named([5, 1, 2, 3, 9]) == "ranks 1-3, 5, 9"


def test_a_slow_batch_is_reported_and_training_goes_on(make_module, make_trainer, make_data, tmp_path, capfd):
    module = make_module()
    step = module.training_step

    def slow_once(batch, batch_idx):
        if batch_idx == 1:
            time.sleep(1.2)
        return step(batch, batch_idx)

    module.training_step = slow_once
    detector = StallDetector(warn_after=0.5, abort_after=None)
    make_trainer(3, [detector]).fit(module, datamodule=make_data())
    text = capfd.readouterr().err
    assert text.count("No progress for") == 1
    assert "The process is in slow_once (training/callbacks/test_stalls.py" in text
    assert "since the run entered a training batch" in text
    assert "optimizer_step" in text  # the stack
    assert not detector.watch.is_alive()
    assert not (tmp_path / "heartbeats").exists()


def test_writing_a_checkpoint_and_previews_are_progress(make_module, make_trainer, make_data, tmp_path, capfd):
    class SlowWrites(Checkpoints):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            for part in range(6):
                time.sleep(0.2)
                (tmp_path / "checkpoints" / ".unfinished").mkdir(parents=True, exist_ok=True)
                (tmp_path / "checkpoints" / ".unfinished" / f"{part}").touch()

    module = make_module()

    latents, text, sigma = torch.zeros(1, 16, 2, 2, 2), module.text_encoder.encode(["make it red"]), torch.ones(1)

    @torch.no_grad()
    def preview():
        for _ in range(6):
            time.sleep(0.2)
            module.denoiser.denoise({"video": latents}, sigma, text, {"source": latents})

    module.on_validation_end = preview
    callbacks = [StallDetector(warn_after=0.8, abort_after=None), SlowWrites(every_n_steps=2)]
    make_trainer(2, callbacks, val_check_interval=2).fit(module, datamodule=make_data(validation=1))
    assert "No progress" not in capfd.readouterr().err


@pytest.mark.parametrize("times", [(0, 10), (10, 5)])
def test_times_that_make_no_sense_are_refused(times):
    with pytest.raises(ValueError, match="0 < warn_after <= abort_after"):
        StallDetector(*times)


@pytest.mark.parametrize(("phase", "ends"), [(None, 0), ("a training batch", 1)])
def test_a_long_setup_is_reported_and_not_ended(phase, ends, tmp_path, monkeypatch, capfd):
    """Reading a large checkpoint is no progress that could be seen."""
    watch = Watch(Heartbeats(tmp_path / "heartbeats", 0), 1, tmp_path / "checkpoints", 1.0, 2.0)
    ended = []
    monkeypatch.setattr(watch, "_abort", ended.append)
    watch.note(phase)
    watch._beat()
    watch._idle = 3.0
    watch._beat()
    assert "No progress for 3 s" in capfd.readouterr().err
    assert len(ended) == ends


HANGS = """
import os, signal, time
from lightning.pytorch import Callback

class Hangs(Callback):
    def __init__(self, how: str):
        self.how = how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == 1:
            self.sleep() if self.how == "sleep" else os.kill(os.getpid(), signal.SIGSTOP)

    def sleep(self):
        while True:
            time.sleep(1)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_a_job_with_a_rank_that_hangs_names_it_and_ends(tiny_yaml, tmp_path):
    (tmp_path / "hangs.py").write_text(HANGS)
    config = tiny_yaml.read_text().replace(
        "  callbacks:\n",
        "  callbacks:\n"
        "    - class_path: icve.training.callbacks.stalls.StallDetector\n"
        "      init_args: {warn_after: 6, abort_after: 10}\n"
        "    - class_path: hangs.Hangs\n"
        "      init_args: {how: HOW}\n",
    )
    jobs = {}
    for how in ("sleep", "stop"):
        path = tmp_path / f"{how}.yaml"
        path.write_text(config.replace("HOW", how))
        words = [f"--trainer.default_root_dir={tmp_path / how}", "--trainer.devices=2", "--trainer.strategy=ddp"]
        # In a group of its own, as a launcher's jobs are.
        jobs[how] = start(path, *words, cwd=tmp_path, start_new_session=True)
    try:
        # This waits for rank 1 too, which holds the pipes.
        texts = {how: job.communicate(timeout=200)[1] for how, job in jobs.items()}
    finally:
        for job in jobs.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    for how, text in texts.items():
        assert jobs[how].returncode != 0
        assert "No progress for" in text, text[-3000:]
        report = text[text.rindex("No progress for") :]
        if how == "sleep":
            assert "The others wait for rank 1 (in sleep (" in report
            assert "hangs.py" in report
        else:
            assert "The others wait for rank 1 (silent: stopped, dead or cut off" in report
        assert "Waiting: rank 0 in " in report
        assert "parallel/distributed.py" in report or "the backward pass" in report
        assert "icve: error: rank 0 ends after" in text
