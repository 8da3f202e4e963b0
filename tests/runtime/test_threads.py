import os

import pytest
import torch

from icve.runtime.threads import SPINS, processor_quota, set_up_threads, share_quota


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def test_waiting_threads_soon_sleep(monkeypatch):
    monkeypatch.setattr("icve.runtime.threads.processor_quota", lambda: None)
    set_up_threads()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS
    assert "OMP_NUM_THREADS" not in os.environ


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setattr("icve.runtime.threads.processor_quota", lambda: 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    set_up_threads()
    assert "GOMP_SPINCOUNT" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_a_container_gets_as_many_threads_as_processors(monkeypatch):
    monkeypatch.setattr("icve.runtime.threads.processor_quota", lambda: 3)
    set_up_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("processes", "threads"), [(1, 6), (2, 3), (4, 1), (12, 1)])
def test_processes_share_the_processors_of_a_container(monkeypatch, processes, threads):
    monkeypatch.setattr("icve.runtime.threads.processor_quota", lambda: 6)
    taken = [6]
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    set_up_threads()
    share_quota(processes)
    assert taken[-1] == threads
    assert os.environ["OMP_NUM_THREADS"] == str(threads)


def test_processes_do_not_share_what_the_user_has_set(monkeypatch):
    monkeypatch.setattr("icve.runtime.threads.processor_quota", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    share_quota(2)
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("content", "quota"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("800000 100000", None)],
)
def test_the_quota_is_that_of_the_control_group(tmp_path, content, quota):
    (tmp_path / "cpu.max").write_text(content + "\n")
    assert processor_quota(tmp_path) == quota


def test_without_a_control_group_there_is_no_quota(tmp_path):
    assert processor_quota(tmp_path / "nowhere") is None
