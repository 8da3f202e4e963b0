"""What cannot be trained is told before the first stage."""

import os

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator

from icve.training.run.stage_checks import count_processes
from tests.training.curriculum.curricula import ULYSSES, fit, stage_data


def test_mistakes_are_told_before_anything_trains(curriculum, config, tmp_path, capsys):
    run = tmp_path / "run"

    def error(path, *arguments):
        assert fit(path, run, *arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    wrong = {"settings": {"model": {"objective": {"init_args": {"edit_weigth": 2.0}}}}}
    assert "Stage 'edits': " in (told := error(curriculum(edits=wrong)))
    assert "edit_weight" in told
    parts = {"edits": stage_data(config, "edits", manifest="nowhere.jsonl")}
    assert "Stage 'edits': data.init_args.manifest is nowhere.jsonl" in error(curriculum(parts))
    assert "Stage 'more_clips' needs steps >= 1" in error(curriculum(more_clips={"steps": 0}))
    assert "Stage 'other' has no data module" in error(curriculum(more_clips={"name": "other"}))
    assert not run.exists()
    run.mkdir()
    told = error(curriculum(), "--ckpt_path", run, "--resume_mode", "full")
    assert "holds no checkpoint of any stage" in told
    assert os.listdir(run) == []


def test_processes_that_cannot_share_a_batch_are_told_before_anything_trains(
    curriculum, config, tmp_path, capsys, monkeypatch
):
    def error(path, devices):
        assert fit(path, tmp_path / "run", "--trainer.devices", devices) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    large = {name: stage_data(config, name, batch_size=4) for name in ("clips", "more_clips")}
    path = curriculum(large)  # edits: two passes of one sample
    told = error(path, 4)
    assert told.startswith(
        "icve: error: Stage 'edits': A batch of 2 samples of bucket 32x32x5 is too small for 4 groups"
    )
    # What a launcher started counts, not what Lightning would.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert "too small for 3 groups" in error(path, 1)
    pairs = {"class_path": ULYSSES, "init_args": {"sequence_parallel_size": 2}}
    path = curriculum(large, edits={"settings": {"trainer": {"strategy": pairs}}})
    assert "Stage 'edits': 3 processes cannot be grouped by 2" in error(path, 1)


@pytest.mark.parametrize(
    ("trainer", "processes"),
    [
        ({"devices": 3, "num_nodes": 2}, 6),
        ({"devices": "3"}, 3),
        ({"devices": [0, 2]}, 2),
        ({"devices": "0,2,"}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": "auto"}, 5),
        ({"devices": -1, "num_nodes": 2, "accelerator": "gpu"}, 10),
        ({}, 5),
    ],
)
def test_processes_are_counted(trainer, processes, monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", lambda: 5)
    assert count_processes(trainer) == processes


def test_of_slurm_its_tasks_are_counted(monkeypatch):
    names = {"SLURM_NTASKS": "12", "SLURM_NTASKS_PER_NODE": "6", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert count_processes({"devices": 1}) == 12
