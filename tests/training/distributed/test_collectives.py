"""How often the processes of a run wait for each other, beside the exchange of gradients, weights and tokens."""

import json
from itertools import pairwise

import pytest

from tests.training.runs import torchrun

CHOICES = ("DDPUlyssesStrategy:1", "DDPUlyssesStrategy:2", "FSDPUlyssesStrategy:1", "DeepSpeedUlyssesStrategy:1")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(250)
def test_processes_agree_once_in_a_step(tmp_path):
    """One small reduction before or after the optimizer's step, and what figures need where they are reported."""
    printed, _ = torchrun("tests.training.distributed.collectives", 2, tmp_path, *CHOICES, seconds=240)
    found = [json.loads(line.removeprefix("FOUND ")) for line in printed.splitlines() if line.startswith("FOUND ")]
    assert len(found) == len(CHOICES)
    for kind, parts in found:
        starts = [i for i, (name, _) in enumerate(parts) if name in ("forward", "end")]
        assert len(starts) == 13
        for number, (start, end) in enumerate(pairwise(starts)):
            *before, (last, step) = parts[start:end]
            assert (last, [counts for _, counts in before]) == ("step", [{}, {}]), (kind, number)
            expected = {}
            if number % 2:  # the step's last micro-batch
                expected = {"all_reduce together.py": 1}
            if number % 6 == 5:  # and it reports: losses and samples of the micro-batches, the loss that is logged
                expected |= {"all_gather_object together.py": 1, "all_gather distributed.py": 1}
                if kind != "DDPUlyssesStrategy":
                    expected |= {"all_reduce gradient_norms.py": 1}
            assert step == expected, (kind, number)
