import os
import subprocess
import sys

import pytest

from icve.runtime.atomic import new_folder, remove_abandoned, temporary_name, whole_file, write_text


def test_writes_the_text_and_its_folder_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "new" / "file.txt", "σ")
    assert path.read_text(encoding="utf-8") == "σ"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "new" / "folder") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "new" / "folder").exists()
    assert os.listdir(tmp_path / "new") == ["folder"]
    with pytest.raises(FileExistsError, match="not empty"), new_folder(tmp_path / "new" / "folder"):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnicodeEncodeError), new_folder(tmp_path / "empty") as folder:
        (folder / "a").write_text("new \ud800", encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]
    assert not os.listdir(tmp_path / "empty")


def test_of_two_that_make_a_folder_one_succeeds(tmp_path):
    with new_folder(tmp_path / "both") as first:
        (first / "a").write_text("first")
        with new_folder(tmp_path / "both") as second:
            (second / "a").write_text("second")
        taken = pytest.raises(FileExistsError, match="not empty")
        with taken, new_folder(tmp_path / "other") as third:
            (third / "a").write_text("third")
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "a").write_text("in its way")
        (tmp_path / "both" / "a").unlink()  # an empty one is replaced
    assert (tmp_path / "both" / "a").read_text() == "first"
    assert (tmp_path / "other" / "a").read_text() == "in its way"
    assert sorted(os.listdir(tmp_path)) == ["both", "other"]


def test_a_folder_gives_way_to_a_new_one_when_that_is_whole(tmp_path):
    path = tmp_path / "folder"
    for word in ("old", "new"):
        with new_folder(path, replace=True) as folder:
            (folder / word).write_text("1")
            assert not path.exists() or os.listdir(path) == ["old"]
    assert os.listdir(path) == ["new"]
    with pytest.raises(UnicodeEncodeError), new_folder(path, replace=True) as folder:
        (folder / "a").write_text("newer \ud800", encoding="utf-8")
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_what_ended_processes_left_of_a_folder_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = temporary_name(tmp_path / "a")
    for folder in (living, tmp_path / f".a.{ended.pid}.0.tmp"):
        folder.mkdir()
        (folder / "1").write_text("1")
    remove_abandoned(tmp_path / "a")
    assert os.listdir(tmp_path) == [living.name]


def test_a_whole_file_appears_when_its_block_ends(tmp_path):
    path = tmp_path / "new" / "file.bin"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"
    with pytest.raises(FileNotFoundError), whole_file(path) as temporary:
        (temporary / "2").write_bytes(b"2")
    assert path.read_bytes() == b"1"
    assert os.listdir(path.parent) == ["file.bin"]
