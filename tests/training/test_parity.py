"""Training in several processes equals training in one, to rounding, whatever the strategy."""

from functools import cache

import numpy as np
import pytest
import torch

from tests.training.conftest import write_pairs
from tests.training.parity import BUCKET, CASES, STEPS, train
from tests.training.runs import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(400)]

# Of the loss, relative. In bfloat16 against float32: weights and activations have 8 bits.
TOLERANCE = {"64-true": 2e-7, "32-true": 5e-5, "bf16-mixed": 3e-2}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 6, BUCKET[2], BUCKET[0])


@pytest.fixture(scope="module")
def alone(manifest, tmp_path_factory):
    """Runs in one process, each made once."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def run(precision, options):
        precision = "32-true" if precision == "bf16-mixed" else precision
        return train(manifest, folder, "auto", precision, **dict(options))

    return run


def means(losses):
    """Mean loss of every micro-batch over the processes: equally many samples each, and equally many have a sample."""
    by_batch = {}
    for process in losses:
        for (batch, _), loss in process.items():
            by_batch.setdefault(batch, []).append(loss)
    return [np.mean(by_batch[batch]) for batch in sorted(by_batch)]


@pytest.mark.parametrize("cases", [2, 4, "2 compiled"])
def test_losses_and_gradients_equal_those_of_one_process(cases, manifest, alone, tmp_path):
    processes, *compiled = str(cases).split()
    torchrun("tests.training.parity", int(processes), manifest, tmp_path, *compiled, seconds=300)
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    assert results.keys() == CASES[cases].keys()
    for name, everybody in results.items():
        _, precision, options = CASES[cases][name]
        options = {option: value for option, value in options.items() if option != "compiled"}
        losses, gradients = alone(precision, tuple(options.items()))
        # Processes that share a sample's tokens scale their parts of it for float8, each for itself.
        tolerance = TOLERANCE["bf16-mixed" if "float8" in options else precision]
        expected = means([losses])
        assert len(expected) == STEPS * options.get("accumulate", 1)
        np.testing.assert_allclose(means([seen[0] for seen in everybody]), expected, tolerance, err_msg=name)
        compare_gradients(name, gradients, [seen[1] for seen in everybody], tolerance)
        # Also where weights are bfloat16: micro-batches are summed in full precision.
        summed = {gradient.dtype for process in everybody for _, _, gradient in process[1]}
        assert summed == {torch.float64 if precision == "64-true" else torch.float32}, name


def compare_gradients(name, expected, everybody, tolerance):
    whole = {parameter: gradient for parameter, _, gradient in expected}
    largest = max(gradient.abs().max() for gradient in whole.values())
    counted = dict.fromkeys(whole, 0)
    replicated = len(everybody[0]) == len(whole) and all(
        len(gradient) == len(whole[parameter]) for parameter, _, gradient in everybody[0]
    )
    for process in everybody[:1] if replicated else everybody:
        for parameter, start, gradient in process:
            counted[parameter] += len(gradient)
            difference = gradient - whole[parameter][start : start + len(gradient)]
            assert difference.numel() == 0 or difference.abs().max() <= 10 * tolerance * largest, (name, parameter)
    assert counted == {parameter: len(gradient) for parameter, gradient in whole.items()}, name
