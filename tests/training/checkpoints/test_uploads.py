"""Checkpoints copied to a URL; the store is memory, and fails on demand."""

import shutil
import threading
import time

import pytest

from icve.models.remote_runs import checkpoints_behind, whole_contents
from icve.runtime.atomic import remove_folder, replace_link
from icve.runtime.folder_contents import CONTENTS
from icve.runtime.storage import remote_path
from icve.runtime.storage.remote_path import RemoteError, RemotePath, as_path
from icve.training.checkpoints import uploads
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.run_url import restore
from icve.training.checkpoints.uploads import Uploads
from tests.training.checkpoints.test_checkpoint_io import CONTENTS as STATE
from tests.training.checkpoints.test_checkpoint_io import save


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 1 and 2, the first of which is the best."""
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2):
        save(folder / f"step-00000{step}")
    replace_link(folder / "last", "step-000002")
    replace_link(folder / "best", "step-000001")
    (tmp_path / "run" / "config.yaml").write_text("seed: 0")
    return tmp_path / "run"


@pytest.fixture
def url(tmp_path, s3, monkeypatch):
    monkeypatch.setattr(uploads, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(uploads, "_LOOKED_AT_EVERY", 0.01)
    return as_path(f"memory://{tmp_path.name}/runs/a")


@pytest.fixture
def begin(run, url):
    """Start uploads of the run, which end with the test."""
    begun = []

    def start(*place, folder=run, **options):
        begun.append(Uploads(url, folder, *place, **options))
        begun[-1].begin()
        return begun[-1]

    yield start
    for each in begun:
        each.end()


def steps(url):
    """The whole checkpoints behind a URL."""
    for folder, files in (found := checkpoints_behind(url)):
        whole_contents(folder, files)
    return [int(folder.name[-1]) for folder, _ in found]


def test_what_is_in_the_folder_is_there_as_well_and_old_ones_go(run, url, begin):
    assert begin().finish()
    assert steps(url) == [2, 1]
    assert sorted(url.listing())[:2] == ["checkpoints/best", "checkpoints/run-id"]
    assert (url / "checkpoints" / "best").read_text() == "step-000001"
    assert (url / "config.yaml").read_text() == "seed: 0"
    remove_folder(run / "checkpoints" / "step-000001")
    (run / "checkpoints" / "best").unlink()
    save(run / "checkpoints" / "step-000003")
    again = begin()
    assert again.finish()
    assert steps(url) == [3, 2]
    assert not (url / "checkpoints" / "best").exists()
    assert not any("step-000001" in name for name in url.listing())


def test_contents_come_last_and_the_newest_first(url, begin, monkeypatch):
    written, upload = [], RemotePath.upload
    monkeypatch.setattr(RemotePath, "upload", lambda self, file: (written.append(self), upload(self, file)))
    assert begin().finish()
    names = [str(path.relative_to(url / "checkpoints")) for path in written if "step-" in str(path)]
    assert names[0] == "step-000002/uploading.json"
    half = names.index("step-000002/contents.json") + 1
    assert half == len(names) / 2
    assert names[-1] == "step-000001/contents.json"
    assert "uploading.json" not in "".join(url.listing())


def test_an_outage_is_told_once_and_made_up_for(run, url, begin, monkeypatch, caplog):
    upload, dead = RemotePath.upload, threading.Event()

    def fail(self, file):
        if dead.is_set():
            raise RemoteError(f"{self} could not be had") from OSError("SlowDown")
        upload(self, file)

    monkeypatch.setattr(RemotePath, "upload", fail)
    running = begin()
    assert running.finish()
    dead.set()
    save(run / "checkpoints" / "step-000003")
    running.due()
    deadline = time.monotonic() + 20
    while running._failures < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert caplog.text.count(f"Checkpoints are not uploaded to {url} (SlowDown)") == 1
    assert not running.finish()
    assert f"with --ckpt_path {run}, the same command uploads them" in caplog.text
    assert steps(url) == [2, 1]
    dead.clear()
    assert running.finish()
    assert steps(url) == [3, 2, 1]
    assert "are there now" in caplog.text


def test_a_killed_upload_is_gone_on_from_and_not_taken_meanwhile(run, url, begin, monkeypatch):
    upload, before = RemotePath.upload, []

    def stop(self, file):
        if self.name == CONTENTS:
            raise RemoteError("killed")
        before.append(self.name)
        upload(self, file)

    monkeypatch.setattr(RemotePath, "upload", stop)
    killed = begin()
    assert not killed.finish()
    killed.end()
    killed.thread.join(20)
    assert "trainer.ckpt" in before
    assert steps(url) == []
    (url / "checkpoints" / "step-000002" / "trainer.ckpt").unlink()
    with (url / "checkpoints" / "step-000002" / "transformer" / "config.json").written_whole() as file:
        file.write_bytes(b"{")  # a file system that leaves half of one
    sent = []
    monkeypatch.setattr(RemotePath, "upload", lambda self, file: (sent.append(self), upload(self, file)))
    assert begin().finish()
    assert steps(url) == [2, 1]
    of_two = sorted(path.name for path in sent if path.is_relative_to(url / "checkpoints" / "step-000002"))
    assert of_two == ["config.json", "contents.json", "trainer.ckpt"]


def test_what_is_written_again_is_uploaded_again(run, url, begin):
    running = begin()
    assert running.finish()
    CheckpointFolders().save_checkpoint(STATE, run / "checkpoints" / "step-000002")
    running.due()
    assert running.finish()
    assert steps(url) == [2, 1]
    assert not any("transformer" in name for name in (url / "checkpoints" / "step-000002").listing())


def test_a_checkpoint_that_is_being_uploaded_is_not_chosen_for_removal(run, url, begin, monkeypatch):
    upload, seen, running = RemotePath.upload, [], []

    def look(self, file):
        if self.name == CONTENTS:
            seen.append((running[0].current, self.parent.name))
        upload(self, file)

    monkeypatch.setattr(RemotePath, "upload", look)
    running.append(Uploads(url, run, released=lambda: seen.append("released")))
    running[0].begin()
    assert running[0].finish()
    running[0].end()
    assert seen == [("step-000002", "step-000002"), "released", ("step-000001", "step-000001"), "released"]


def test_processes_upload_their_parts(run, url, begin, monkeypatch):
    asked, put = [], Uploads._put

    def note(self, folder, names):
        asked.append((self.rank, len(names)))
        put(self, folder, names)

    monkeypatch.setattr(Uploads, "_put", note)
    helper = Uploads(url, run, 1, 2)
    helper.begin()
    leader = begin(0, 2)
    ended = threading.Thread(target=helper.finish)
    ended.start()
    assert leader.finish()
    ended.join(10)
    assert not ended.is_alive()
    helper.end()
    assert steps(url) == [2, 1]
    assert {rank for rank, count in asked if count} == {0, 1}


def test_another_runs_url_is_refused(run, url, begin, tmp_path):
    assert begin().finish()
    shutil.copytree(run, tmp_path / "other", symlinks=True)
    (tmp_path / "other" / "checkpoints" / "run-id").unlink()
    with pytest.raises(ValueError, match=f"{url} holds checkpoints of another run than {tmp_path / 'other'}"):
        begin(folder=tmp_path / "other")
    assert begin().finish()  # its own


def test_a_server_that_refuses_is_told_before_training(run, url, s3, monkeypatch):
    s3.failing = "403"
    with pytest.raises(RemoteError, match="refused to you"):
        Uploads(as_path("s3://nobody/run"), run).begin()
    s3.failing = None
    remote_path.forget()
    with pytest.raises(ValueError, match="there is no such bucket"):
        Uploads(as_path("s3://no-such-bucket-here/run"), run).begin()


def test_a_run_is_brought_back_to_an_empty_disk(run, url, begin, tmp_path):
    assert begin().finish()
    back = tmp_path / "back"
    assert restore(url, back) == back
    checkpoints = back / "checkpoints"
    assert (checkpoints / "last").resolve() == checkpoints / "step-000002"
    assert (checkpoints / "best").resolve() == checkpoints / "step-000001"
    for name in ("run-id", "step-000001/contents.json", "step-000002/trainer.ckpt"):
        assert (checkpoints / name).read_bytes() == (run / "checkpoints" / name).read_bytes()
    shutil.rmtree(checkpoints / "step-000002" / "state")  # damaged here: brought again
    restore(url, back)
    assert (checkpoints / "step-000002" / "state").is_dir()
    named = restore(url, tmp_path / "named", "best")
    assert named == tmp_path / "named" / "checkpoints" / "step-000001"
    with pytest.raises(FileNotFoundError, match="There is no checkpoint step-000009"):
        restore(url, back, "step-000009")


def test_a_newer_checkpoint_on_the_disk_is_kept(run, url, begin):
    assert begin().finish()
    save(run / "checkpoints" / "step-000003")
    replace_link(run / "checkpoints" / "last", "step-000003")
    restore(url, run)
    assert (run / "checkpoints" / "last").resolve().name == "step-000003"
