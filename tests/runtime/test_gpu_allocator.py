import os
import subprocess
import sys

import pytest

from icve.runtime.gpu_allocator import VARIABLES, set_up_allocator


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")


def test_segments_grow():
    set_up_allocator()
    assert {name: os.environ.get(name) for name in VARIABLES} == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "PYTORCH_CUDA_ALLOC_CONF": None,  # torch says that it is deprecated
        "PYTORCH_HIP_ALLOC_CONF": None,
    }


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:512")
    set_up_allocator()
    assert {other: os.environ[other] for other in VARIABLES if other in os.environ} == {name: "max_split_size_mb:512"}


def test_where_torch_does_not_know_it_nothing_is_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    set_up_allocator()
    assert not any(name in os.environ for name in VARIABLES)


def test_commands_set_it_before_torch_is_there():
    script = "import os, sys; from icve.cli.main import main; main(['--version']); assert 'torch' not in sys.modules; "
    script += "print(os.environ['PYTORCH_ALLOC_CONF'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "expandable_segments:True"
