import json
import subprocess

import pytest

from icve.training.run.environment import git_state, record_start


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_changes(tmp_path):
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "missing") is None
    git(tmp_path, "init", "-q")
    file = tmp_path / "file.py"
    file.write_text("1")
    assert git_state(tmp_path, str(file)) is None
    git(tmp_path, "add", "file.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path, str(file)) == {"commit": commit, "changed": False}
    file.write_text("2")
    assert git_state(tmp_path) == {"commit": commit, "changed": True}


def test_without_git_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_every_start_is_an_entry_and_no_secret_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2-is-secret")
    record_start(tmp_path / "run", 1)
    path = record_start(tmp_path / "run", 16)
    assert "hunter2" not in path.read_text()
    entries = json.loads(path.read_text())
    assert [entry["processes"] for entry in entries] == [1, 16]
    assert all(entries[0]["packages"][name] for name in ("icve", "torch", "lightning", "diffusers", "transformers"))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"environment\.json is not what a run writes there .*: remove it"):
        record_start(tmp_path / "run", 1)
