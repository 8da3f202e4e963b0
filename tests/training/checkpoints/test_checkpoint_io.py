import os
import threading
import time

import pytest
import torch
import torch.distributed as dist

from icve.models.run_folders import resolve_checkpoint
from icve.runtime import folder_contents
from icve.runtime.folder_contents import describe, write_contents
from icve.training.checkpoints import background, checkpoint_io
from icve.training.checkpoints.checkpoint_io import CheckpointFolders, CheckpointNotWritten
from icve.training.checkpoints.micro_steps import STAGE_KEY
from icve.training.checkpoints.stage_record import read_stage
from icve.training.checkpoints.state_files import WEIGHTS, Slice

CONTENTS = {
    "state_dict": {"transformer.w": torch.arange(3.0)},
    STAGE_KEY: {"stage": "sft", "step": 7, "micro_steps": 2, "seed": 0},
}


def save(path):
    CheckpointFolders(write_model).save_checkpoint(CONTENTS, path)
    return path


def write_model(shapes, folder, files):
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")


def test_a_folder_with_everything_and_nothing_else(tmp_path):
    path = save(tmp_path / "checkpoints" / "step-000007")
    assert sorted(entry.name for entry in path.iterdir()) == ["contents.json", "state", "trainer.ckpt", "transformer"]
    assert [entry.name for entry in path.parent.iterdir()] == ["step-000007"]
    loaded = CheckpointFolders().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["transformer.w"], torch.arange(3.0))
    assert read_stage(path) == CONTENTS[STAGE_KEY]


def test_what_is_saved_again_replaces_the_old(tmp_path):
    path = save(tmp_path / "step-000007")
    (path / "old").touch()
    save(path)
    assert not (path / "old").exists()


def test_a_failed_save_leaves_nothing(tmp_path):
    def fail(shapes, folder, files):
        raise OSError("disk full")

    with pytest.raises(CheckpointNotWritten, match=r"disk full.*make room"):
        CheckpointFolders(fail).save_checkpoint(CONTENTS, tmp_path / "step-000007")
    assert list(tmp_path.iterdir()) == []


def test_all_of_it_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, flush = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (flush(number), flushed.add(os.fstat(number).st_ino)))
    path = save(tmp_path / "step-000007")
    assert [entry for entry in (path, *path.rglob("*")) if entry.stat().st_ino not in flushed] == []


@pytest.fixture
def alone(tmp_path):
    """A group of processes that has one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def write_share(shapes, folder, files, process, dtype):
    """A process's share of an editor: what the others have written is there."""
    assert files.names(WEIGHTS) == [f"w{rank}" for rank in range(process[1])]
    file = folder / f"share-{process[0]}"
    file.touch()
    return [file]


def save_shared(path, rank=0, done=None, write=write_share):
    folders = CheckpointFolders(write_weights=write)
    folders.save_shared({STAGE_KEY: 1}, path, [Slice(WEIGHTS, f"w{rank}", 0, torch.arange(3.0))], done)
    folders.finish()


@pytest.mark.parametrize("fails", ["announce", "write_slices", "exchange"])
@pytest.mark.parametrize("done", [None, lambda: None])
def test_nothing_is_left_of_a_shared_one_and_its_own_name_is_told(alone, tmp_path, monkeypatch, done, fails):
    folder, work = tmp_path / "checkpoints", getattr(checkpoint_io, fails)

    def full(*arguments):
        work(*arguments)
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_io, fails, full)
    with pytest.raises(CheckpointNotWritten, match=r"step-000002 could not be written .*No space left.*make room"):
        save_shared(folder / "step-000002", done=done)
    assert list(folder.iterdir()) == []


def save_where_one_cannot(rank, folder):
    """What the processes of `test_all_processes_know_that_one_could_not_write` do."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    write, checkpoints = checkpoint_io.write_slices, folder / "checkpoints"

    def full(*arguments):
        raise OSError("No space left on device")

    def slow(*arguments):
        time.sleep(0.5)
        return write(*arguments)

    for number, (broken, done) in enumerate([(0, None), (1, None), (0, lambda: None), (1, lambda: None)]):
        checkpoint_io.write_slices = full if rank == broken else slow
        with pytest.raises(CheckpointNotWritten, match=rf"step-{number} could not be written .*No space left"):
            save_shared(checkpoints / f"step-{number}", rank, done)
        assert rank or list(checkpoints.iterdir()) == []
        checkpoint_io.write_slices = slow
        for process in (0, 1):
            with pytest.raises(CheckpointNotWritten, match=r"step-9 could not be written .*No space left"):
                save_shared(checkpoints / "step-9", rank, done, full if rank == process else write_share)
            assert rank or list(checkpoints.iterdir()) == []
    checkpoint_io.write_slices = slow
    for done in (None, lambda: None):
        save_shared(checkpoints / "step-5", rank, done)
        assert [path.name for path in checkpoints.iterdir()] == ["step-5"]
        kept = {"share-0", "share-1", "state", "trainer.ckpt", "contents.json"}
        assert {path.name for path in (checkpoints / "step-5").iterdir()} == kept
        assert folder_contents.find_damage(checkpoints / "step-5") is None
        dist.barrier()  # before the next one


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_all_processes_know_that_one_could_not_write(tmp_path):
    torch.multiprocessing.spawn(save_where_one_cannot, (tmp_path,), nprocs=2)


def test_who_has_come_so_far_does_not_wait_for_one_that_has_failed(tmp_path):
    background.announce(tmp_path, 2)
    with pytest.raises(ZeroDivisionError):
        background.hand_over(tmp_path, 1, lambda: 1 // 0)
    with pytest.raises(OSError, match="process 1 could not write"):
        background.exchange(tmp_path, 0, 2, [], threading.Event())


def test_a_run_that_failed_does_not_wait_long_for_processes_that_may_be_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "_PATIENCE_AT_END", 0.5)
    background.announce(tmp_path, 2)
    background.hand_over(tmp_path, 0, dict)
    folders, told = CheckpointFolders(), []

    def wait():
        try:
            background.wait_for_all(tmp_path, 2, folders._run_failed)
        except OSError as error:
            told.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    folders.run_failed()
    thread.join(10.0)
    assert told == ["process 1 has not written its part in time"]


def test_arbitrary_objects_are_not_loaded(tmp_path):
    path = save(tmp_path / "step-000001")
    torch.save({STAGE_KEY: CheckpointFolders}, path / "trainer.ckpt")
    write_contents(path, describe(path, [path / "trainer.ckpt"]))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        CheckpointFolders().load_checkpoint(path)


def spoil(folder, how):
    file = folder / "state" / "00000-of-00001-000.safetensors"
    if how == "flipped":
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        file = folder / "trainer.ckpt"
        file.write_bytes(file.read_bytes()[:100])
    else:
        (folder / ("trainer.ckpt" if how == "missing" else "contents.json")).unlink()


def test_what_only_reading_shows_is_passed_over_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_contents, "_SMALL", 0)  # no file is looked into at a glance
    older, newer = (save(tmp_path / f"step-00000{n}") for n in (5, 7))
    spoil(newer, "flipped")
    assert resolve_checkpoint(tmp_path) == newer
    folders = CheckpointFolders()
    with pytest.raises(ValueError, match="checksum"):
        folders.load_checkpoint(newer)
    folders.fall_back = True
    (older / "contents.json").touch()
    assert folders.load_parts(newer)[1].folder == older / "state"
