"""Threads of numerical work, set up so that a command beside others slows down by its share and not by far more.

OpenMP's threads wait for each other after every operation, some thousand times per training step. By default they spin:
on a busy machine a waiting thread uses up the time slices that the one it waits for needs. Sleeping at once costs a
quiet machine a sixth of its speed; spinning for some microseconds costs nothing and sleeps when it matters
(`tools/bench_busy.py`).
"""

import math
import os
from pathlib import Path

SPINS = "10000"  # of GNU's OpenMP, which torch's builds for Linux bring: some ten microseconds
CGROUP = Path("/sys/fs/cgroup")


def set_up_threads() -> None:
    """Set OpenMP's variables, except those that the user has set; to be called before torch is imported."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
    quota = processor_quota()
    if quota is not None and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(quota)


def share_quota(processes: int) -> None:
    """Divide a container's processors among the processes of a run on this machine, unless the user has set threads."""
    quota = processor_quota()
    if processes > 1 and quota is not None and os.environ.get("OMP_NUM_THREADS") == str(quota):
        import torch

        own = max(1, quota // processes)
        os.environ["OMP_NUM_THREADS"] = str(own)  # of those that this one starts
        torch.set_num_threads(own)


def processor_quota(cgroup: Path = CGROUP) -> int | None:
    """Processors that a container may use at once, rounded up; None where that is no fewer than it sees."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        quota = math.ceil(int(limit) / int(period))
    except (OSError, ValueError):  # no such limit ("max"), or another system
        return None
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, quota) if quota < seen else None
