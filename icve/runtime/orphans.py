"""A process of a job does not outlive the one that launched it.

When that one is killed, the others may wait for it for half an hour: in the rendezvous, or in a collective. They would
keep their devices, and write into the run folder beside the next start of the job.
"""

import os
import sys
import threading
import time

LAUNCHER = "ICVE_LAUNCHER"  # environment variable: process id of the one that may launch others


def end_with_launcher(grace: float = 5.0) -> None:
    """Watch the process that launched this one, if one did; to be called before anything is waited for.

    Lightning's launcher is the process of local rank 0, torchrun is one of its own. Slurm ends what it has started.

    Args:
        grace: seconds in which this process may still end by itself, as it does at the end of training.
    """
    launcher = _launcher()
    os.environ[LAUNCHER] = str(os.getpid())  # for processes that Lightning launches from here
    if launcher is not None:
        threading.Thread(target=_watch, args=(launcher, grace), name="launcher watch", daemon=True).start()


def _launcher() -> int | None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.getppid()
    if os.environ.get("LOCAL_RANK", "0") != "0" and LAUNCHER in os.environ:
        return int(os.environ[LAUNCHER])
    return None


def _watch(launcher: int, grace: float) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    time.sleep(grace)
    # Nothing gentler gets through to a main thread that waits in C++.
    sys.stderr.write(f"\nicve: error: process {os.getpid()} ends: the one that launched it, {launcher}, is gone.\n")
    os._exit(1)
