"""Validations, previews and skipped steps are the same whatever the strategy, and none waits for ever."""

import numpy as np
import pytest
import torch

from tests.training.eventful import INFINITE_LOSS, NOT_A_NUMBER, PATIENCE, strategies, train
from tests.training.runs import torchrun

STEPS_SEEN = max(INFINITE_LOSS)  # the step after them ends the run
PLAIN, NOTHING_CHANGED = (False, [False] * 3), (True, [True] * 3)

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(500)]


def test_all_strategies_validate_and_skip_as_one_process(tmp_path):
    alone = train(tmp_path / "alone")
    assert alone["steps"] == [
        NOTHING_CHANGED if step in NOT_A_NUMBER | INFINITE_LOSS else PLAIN for step in range(STEPS_SEEN)
    ]
    assert f"Stopped at step {STEPS_SEEN}: {PATIENCE} steps in a row were not finite" in alone["end"]
    assert len(alone["figures"]) == 2
    # Training does not notice the validations; they see the averages.
    np.testing.assert_array_equal(train(tmp_path / "unseen", validate=False)["losses"], alone["losses"])
    for figures, live in zip(alone["figures"], train(tmp_path / "live", average=False)["figures"], strict=True):
        assert len(figures) == 9
        assert figures["val/loss"] != pytest.approx(live["val/loss"], rel=1e-4)

    _, told = torchrun("tests.training.eventful", 2, tmp_path, seconds=400)
    skipped = len(NOT_A_NUMBER) + len(INFINITE_LOSS)
    assert told.count("non-finite loss or gradient and is skipped") == skipped * len(list(strategies()))
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert list(results) == [name for name, _ in strategies()]
    for name, processes in results.items():
        losses = np.mean([process["losses"] for process in processes], axis=0)
        np.testing.assert_allclose(losses, alone["losses"], rtol=1e-5, err_msg=name)
        for process in processes:
            for key in ("steps", "end", "updates"):
                assert process[key] == alone[key], (name, key)
            for figures, expected in zip(process["figures"], alone["figures"], strict=True):
                assert figures == pytest.approx(expected, rel=1e-5), name
