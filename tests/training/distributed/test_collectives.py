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
    for choice, (kind, parts) in zip(CHOICES, found, strict=True):
        shared = choice.endswith(":2")
        starts = [i for i, (name, _) in enumerate(parts) if name in ("forward", "end")]
        assert len(starts) == 13
        for number, (start, end) in enumerate(pairwise(starts)):
            *before, (last, step) = parts[start:end]
            # Before the forward pass, a group that shares tokens brings together what each of it encoded.
            encoded = {"all_gather shared_encoding.py": 5} if shared else {}
            assert (last, [counts for _, counts in before]) == ("step", [encoded, {}]), (kind, number)
            expected = {}
            if number % 2:  # the step's last micro-batch
                expected = {"all_reduce together.py": 1}
            if number % 6 == 5:  # and it reports: losses and samples of the micro-batches, the loss that is logged
                expected |= {"all_gather_object together.py": 1, "all_gather distributed.py": 1}
                if kind != "DDPUlyssesStrategy":
                    expected |= {"all_reduce gradient_norms.py": 1}
            assert step == expected, (kind, number)
