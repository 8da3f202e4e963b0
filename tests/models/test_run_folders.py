"""Which checkpoint a path means."""

import os

import pytest
import torch

from icve.models.run_folders import resolve_checkpoint, saved_checkpoints
from icve.runtime.atomic import replace_link
from icve.training.checkpoints.stage_record import read_stage
from tests.training.checkpoints.test_checkpoint_io import save, spoil


def test_every_way_to_name_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    first, second = (save(run / "checkpoints" / f"step-00000{n}") for n in (5, 7))
    replace_link(second.parent / "last", second.name)
    for name in (run, run / "checkpoints", run / "checkpoints" / "last", second):
        assert resolve_checkpoint(name) == second
    assert resolve_checkpoint(first) == first
    assert resolve_checkpoint(first / "transformer") == first / "transformer"
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    assert resolve_checkpoint(weights) == weights
    assert read_stage(weights) is None


def test_half_written_folders_and_a_dangling_link_do_not_matter(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    good = save(checkpoints / "step-000900")
    save(checkpoints / "step-001000").rename(checkpoints / ".step-001000.17.tmp")
    (checkpoints / "last").symlink_to("step-001000")
    assert saved_checkpoints(checkpoints) == [good]
    assert resolve_checkpoint(tmp_path / "run") == good
    assert resolve_checkpoint(checkpoints / "last") == good


def test_the_link_is_replaced_and_relative(tmp_path):
    first, second = (save(tmp_path / f"step-00000{n}") for n in (1, 2))
    replace_link(first.parent / "last", first.name)
    replace_link(second.parent / "last", second.name)
    assert os.readlink(tmp_path / "last") == "step-000002"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last", "step-000001", "step-000002"]


def test_steps_sort_as_numbers(tmp_path):
    names = ["step-1000000", "step-000900", "step-20"]
    for name in names:
        save(tmp_path / name)
    assert [path.name for path in saved_checkpoints(tmp_path)] == ["step-20", "step-000900", "step-1000000"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_no_checkpoint_is_one_sentence(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name} (does not exist|holds no checkpoint); name a run folder"):
        resolve_checkpoint(tmp_path / name)


def test_a_foreign_checkpoint_is_named(tmp_path):
    path = tmp_path / "step-000001"
    path.mkdir()
    torch.save({"state_dict": {}}, path / "trainer.ckpt")
    with pytest.raises(ValueError, match="not written by this project"):
        read_stage(path)


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "unlisted"])
def test_a_damaged_checkpoint_is_passed_over_unless_it_is_named(tmp_path, how, caplog):
    older, newer = (save(tmp_path / "run" / "checkpoints" / f"step-00000{n}") for n in (5, 7))
    replace_link(newer.parent / "last", newer.name)
    spoil(newer, how)
    for name in (tmp_path / "run", newer.parent / "last"):
        assert resolve_checkpoint(name) == older
    assert "the run goes on from" in caplog.text
    replace_link(newer.parent / "best", newer.name)
    for name in (newer, newer.parent / "best"):  # another one is not the best
        with pytest.raises(ValueError, match=r"step-000007 is damaged: .* resume from an earlier one"):
            resolve_checkpoint(name)
    spoil(older, how)
    with pytest.raises(ValueError, match="is damaged"):
        resolve_checkpoint(tmp_path / "run")
