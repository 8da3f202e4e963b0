"""A run that was killed, damaged and starved of disk ends as one that was left alone."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools.faults.faults import DISK, KILLED_IN_SAVE, KILLED_IN_STEP, damage_newest
from tools.faults.run import Run, write_pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.multiprocess,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
STEPS = 24
DAMAGE_SEED = 0  # cuts a part of the training state
SEED = 874  # the first fault comes after two checkpoints, the others soon after a start


@pytest.mark.timeout(900)
def test_a_run_that_meets_faults_equals_the_undisturbed_one(tmp_path):
    manifest = write_pairs(tmp_path / "pairs")
    undisturbed = Run(tmp_path / "undisturbed", manifest, "zero2", STEPS)
    run = Run(tmp_path / "run", manifest, "zero2", STEPS, SEED)
    with ThreadPoolExecutor() as pool:  # a job that ends waits for seconds, which the other one can use
        finished = pool.submit(undisturbed.finish)
        for fault in (KILLED_IN_STEP, KILLED_IN_SAVE, DISK):
            assert run.meet(fault)
        finished.result()
    assert "could not be written" in run.log
    assert "Traceback" not in run.log
    run.random.seed(DAMAGE_SEED)  # how often it was drawn from before depends on when the faults came
    assert damage_newest(run)
    run.finish()
    assert run.log.count("the run goes on from") == 1

    assert run.figures.problems == []
    assert run.figures.faults == {fault.name: 1 for fault in (KILLED_IN_STEP, KILLED_IN_SAVE, DISK)}
    assert run.result() == undisturbed.result()
