"""A process that has worked with others ends with its own status."""

import os
import subprocess
import sys

import pytest

EXCHANGES = """
import sys
import torch
import torch.distributed as dist
from icve.runtime.shutdown import let_exchanges_end

store, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
groups = [dist.new_group() for _ in range(8)]
dist.barrier()
sys.setswitchinterval(100)  # the interpreter is not given to other threads while this one goes on
works = [dist.all_gather([torch.zeros(9), torch.zeros(9)], torch.zeros(9), group=g, async_op=True) for g in groups]
for work in works:
    work.wait()
del work, works
let_exchanges_end()
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_threads_that_let_go_of_tensors_do_not_abort_it(watched, tmp_path):
    """Without it about every second attempt ends with -6."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for attempt in range(3):
        command = [sys.executable, "-c", EXCHANGES, tmp_path / f"store{attempt}"]
        both = [watched(subprocess.Popen([*command, rank], env=environment)) for rank in "01"]
        assert [process.wait(60) for process in both] == [0, 0]


def test_alone_nothing_is_waited_for(monkeypatch):
    from icve.runtime import shutdown as leaving

    monkeypatch.setattr(leaving.time, "sleep", lambda seconds: pytest.fail("waits"))
    leaving.let_exchanges_end()
