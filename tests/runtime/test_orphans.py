"""What is launched ends with its launcher."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

LAUNCHED = "import sys, time; from icve.runtime.orphans import end_with_launcher as f; f(grace=0); time.sleep(100)"
LAUNCHER = f"""
import os, subprocess, sys, time
from icve.runtime.orphans import end_with_launcher
end_with_launcher()
for rank in "01":
    launched = subprocess.Popen([sys.executable, "-c", {LAUNCHED!r}], env=os.environ | {{"LOCAL_RANK": rank}})
    print(launched.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_whose_launcher_is_killed_ends(watched):
    """One of local rank 0 was not launched by Lightning: it may be meant to go on without its parent."""
    without = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": without}
    launcher = watched(subprocess.Popen([sys.executable, "-c", LAUNCHER], **options))
    other, launched = (int(launcher.stdout.readline()) for _ in "01")
    try:
        time.sleep(2)
        assert alive(launched)
        launcher.kill()
        deadline = time.monotonic() + 20
        while alive(launched):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert alive(other)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)
    _, errors = launcher.communicate()
    assert f"process {launched} ends: the one that launched it, {launcher.pid}, is gone" in errors


def alive(process: int) -> bool:
    """Whether a process lives; one that has ended may wait to be noticed by its parent."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
