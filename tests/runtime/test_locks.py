"""Locks with flock and without it: every test runs on both."""

import errno
import json
import multiprocessing
import os
import threading

import pytest

from icve.runtime import locks
from icve.runtime.locks import AlreadyLocked, locked

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(params=["flock", errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def kind(request, monkeypatch):
    if request.param != "flock":
        _without_flock(monkeypatch, request.param)
    return request.param


def _without_flock(monkeypatch, number=errno.ENOSYS):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_is_held_by_one(kind, tmp_path):
    file = tmp_path / "new" / "lock"
    with locked(file), pytest.raises(AlreadyLocked), locked(file, wait=False):
        pass
    with locked(file, wait=False):
        pass
    assert os.listdir(file.parent) == ["lock"]


def test_it_is_freed_by_an_error(kind, tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        _ = 1 / 0
    with locked(tmp_path / "lock", wait=False):
        pass


def test_threads_take_turns(kind, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count():
        for _ in range(5):
            with locked(tmp_path / "lock"):
                counter.write_text(str(int(counter.read_text()) + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "20"


def _die_holding(file):
    lock = locked(file)
    lock.__enter__()
    os._exit(0)


def test_a_dead_process_holds_nothing(kind, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_die_holding, args=(tmp_path / "lock",))
    process.start()
    process.join()
    assert (tmp_path / "lock.held").exists() == (kind != "flock")
    with locked(tmp_path / "lock", wait=False):
        pass


def test_a_new_process_with_a_dead_ones_id_is_not_taken_for_it(tmp_path, monkeypatch):
    _without_flock(monkeypatch)
    owner = {"place": locks._place(), "pid": os.getpid(), "began": "1", "id": "x"}
    (tmp_path / "lock.held").write_text(json.dumps(owner))
    with locked(tmp_path / "lock", wait=False):
        pass


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("left", ['{"place": ["elsewhere"], "pid": 1, "began": null, "id": "x"}', "", "[]", "7"])
def test_what_another_machine_left_behind_is_abandoned_when_nobody_touches_it(tmp_path, monkeypatch, left, wait):
    _without_flock(monkeypatch)
    monkeypatch.setattr(locks, "ABANDONED_AFTER", 0.1)
    (tmp_path / "lock.held").write_text(left)
    with locked(tmp_path / "lock", wait):
        assert json.loads((tmp_path / "lock.held").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EBADF])
def test_flock_that_fails_is_an_error_and_no_reason_to_take_the_other_lock(tmp_path, monkeypatch, number):
    _without_flock(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)), locked(tmp_path / "lock"):
        pass
    assert os.listdir(tmp_path) == ["lock"]


def test_too_many_locks_for_a_moment_do_not_lead_to_the_other_lock(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def once_too_many(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", once_too_many)
    with locked(tmp_path / "lock"):
        assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize(("age", "stays"), [(0, True), (3600, False)])
def test_a_breaker_is_judged_by_the_file_systems_clock(tmp_path, monkeypatch, age, stays):
    for name in ("lock", "lock.held", "lock.held.breaking"):
        (tmp_path / name).write_text("another's")
    breaking = tmp_path / "lock.held.breaking"
    modified = breaking.stat().st_mtime - age
    os.utime(breaking, (modified, modified))
    monkeypatch.setattr(locks.time, "time", lambda: modified + 30 if age else modified + 7200)  # this machine's differs
    locks._remove_abandoned(tmp_path / "lock.held", "another's")
    assert breaking.exists() == stays
    assert (tmp_path / "lock.held").exists()  # removed at the next look at the earliest


def test_another_machines_holder_that_touches_its_file_is_named(tmp_path, monkeypatch):
    _without_flock(monkeypatch)
    held = tmp_path / "lock.held"
    held.write_text('{"place": ["elsewhere"], "pid": 17, "began": null, "id": "x"}')
    ended = threading.Event()
    monkeypatch.setattr(locks, "TOUCHED_EVERY", 0.02)
    toucher = threading.Thread(target=locks._touch, args=(held, ended))
    toucher.start()
    try:
        with pytest.raises(AlreadyLocked) as error, locked(tmp_path / "lock", wait=False):
            pass
    finally:
        ended.set()
        toucher.join()
    assert error.value.holder == "process 17 on elsewhere"


def test_a_lock_that_another_took_over_is_not_removed(tmp_path, monkeypatch):
    _without_flock(monkeypatch)
    with locked(tmp_path / "lock"):
        (tmp_path / "lock.held").write_text("another's")
    assert (tmp_path / "lock.held").read_text() == "another's"


def test_a_folder_that_cannot_be_written_is_no_other_process(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"), locked(tmp_path / "file" / "lock"):
        pass
