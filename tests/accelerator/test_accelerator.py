"""Runs what only an accelerator shows, mixed devices and waits in hot loops, on a simulated one.

The files `on_*.py` are tests too, in a process of their own: the device stays registered there, and is what
`torch.accelerator` then names. By hand: `pytest -n0 -p tests.accelerator.plugin tests/accelerator/on_*.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accelerator.device import COMPILER

FILES = sorted(Path(__file__).parent.glob("on_*.py"))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform != "linux", reason="the simulated accelerator is built for Linux")
def test_on_the_simulated_accelerator(repository):
    if COMPILER is None and not os.environ.get("CI"):
        pytest.skip("no C++ compiler: install g++, or name one with CXX, to run the tests on a simulated accelerator")
    assert COMPILER is not None, "continuous integration needs a C++ compiler: install g++."
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "tests.accelerator.plugin"]
    done = subprocess.run(
        [*command, *map(str, FILES)],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
