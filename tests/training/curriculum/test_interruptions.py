"""An interrupted curriculum, resumed, equals an uninterrupted one."""

import logging
import os
import shutil
import signal

import pytest

from icve.training.run import stage_runs
from icve.training.run.curriculum_record import Record
from tests.training.curriculum.curricula import (
    TIME_LIMIT,
    assert_equal_runs,
    cut,
    events,
    fit,
    told_at_the_end,
)
from tests.training.runs import finish, steps, until_steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "without", "checkpoints"),
    [
        pytest.param(6, ["edits"], ["more_clips/checkpoints/step-000006"], id="before the validation at a checkpoint"),
        pytest.param(7, ["edits"], ["more_clips/checkpoints/step-000006"], id="in the second stage"),
        pytest.param(8, ["edits"], [], id="before the end is on record"),
        pytest.param(9, ["edits"], [], id="between two stages"),
        pytest.param(10, [], ["edits/checkpoints"], id="before a stage's first checkpoint"),
    ],
)
def test_an_interrupted_run_goes_on_where_it_was(whole, tmp_path, lines, without, checkpoints):
    path, truth = whole
    run = tmp_path / "run"
    shutil.copytree(truth, run, symlinks=True)
    cut(run, lines, without, checkpoints)
    assert fit(path, run, "--ckpt_path", run) == 0
    assert_equal_runs(run, truth)
    told = {(e["event"], e["stage"], e["step"]): e["figures"] for e in Record(truth).entries()}
    told_again = {(e["event"], e["stage"], e["step"]): e["figures"] for e in Record(run).entries()}
    assert told_again == told


@pytest.fixture
def never_killed():
    """A signal that nobody hears does not end the tests."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in its last validation", "between two stages"])
def test_a_run_told_to_stop_at_the_end_of_a_stage_does_not_begin_the_next(
    whole, curriculum, tmp_path, monkeypatch, caplog, never_killed, where
):
    caplog.set_level(logging.INFO)
    plain, truth = whole
    path, run, train = plain, tmp_path / "run", stage_runs._run_to_its_end
    if where == "between two stages":

        def train_and_be_told(*arguments):
            ended = train(*arguments)
            os.kill(os.getpid(), signal.SIGUSR1)
            return ended

        monkeypatch.setattr(stage_runs, "_run_to_its_end", train_and_be_told)
    else:
        path = curriculum(clips=told_at_the_end("clips"))
    mine = signal.getsignal(signal.SIGUSR1)
    assert fit(path, run) == 0
    assert signal.getsignal(signal.SIGUSR1) == mine
    assert not (run / "more_clips").exists()
    assert f"Stage 'clips' has ended and the run was stopped; resume with --ckpt_path {run}." in caplog.text
    monkeypatch.undo()
    assert fit(plain, run, "--ckpt_path", run) == 0
    assert_equal_runs(run, truth)


def test_resumed_before_its_first_checkpoint_it_begins_anew(whole, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path, truth = whole
    run = tmp_path / "run"
    shutil.copytree(truth, run, symlinks=True)
    cut(run, 1, ["more_clips", "edits"], ["clips/checkpoints"])
    assert fit(path, run, "--ckpt_path", run) == 0
    assert f"{run} is the run's own folder and holds no checkpoint yet" in caplog.text
    assert_equal_runs(run, truth)
    assert events(run) == events(truth)


def test_an_earlier_run_is_not_overwritten_and_an_ended_one_has_nothing_to_train(whole, capsys):
    path, run = whole
    before = sorted(run.rglob("*"))
    assert fit(path, run) == 2
    assert f"resume it with --ckpt_path {run}" in capsys.readouterr().err
    assert fit(path, run, "--ckpt_path", run) == 2
    assert "Nothing to train: all stages" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(3 * TIME_LIMIT)
def test_killed_in_the_second_stage_and_resumed_equals_uninterrupted(started, curriculum, tmp_path):
    path = curriculum(more_clips={"steps": 60})
    truth, run = tmp_path / "truth", tmp_path / "run"
    finish(started(path, truth), TIME_LIMIT)
    process = started(path, run)
    until_steps(process, run / "more_clips", 25, TIME_LIMIT)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIME_LIMIT)
    assert len(steps(run / "more_clips")) < 60
    finish(started(path, run, "--ckpt_path", run), TIME_LIMIT)
    assert_equal_runs(run, truth)
    assert events(run) == events(truth)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(TIME_LIMIT)
def test_one_of_two_processes_told_at_the_end_of_a_stage_stops_both(started, curriculum, tmp_path):
    path, run = curriculum(clips=told_at_the_end("clips", rank=1)), tmp_path / "run"
    finish(started(path, run, "--trainer.devices", 2, "--trainer.strategy", "ddp"), TIME_LIMIT)
    assert events(run)[-1][:2] == ("end", "clips")
    assert not (run / "more_clips").exists()
