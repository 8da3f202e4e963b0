"""Reference values of metrics, and the tiny models that they were made with."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file


class Goldens:
    """``cases`` by name, input arrays by name, and folders of models."""

    def __init__(self, folder):
        self.folder = folder
        content = json.loads((folder / "golden_metrics.json").read_text())
        self.cases = {case["name"]: case for case in content["cases"]}
        self.arrays = load_file(folder / "golden_metrics.safetensors")

    def __getitem__(self, name):
        return self.arrays[name]

    def model(self, name):
        return str(self.folder / "models" / name)

    def assert_close(self, name, found):
        """Compare with what a case expects, within its tolerance."""
        case = self.cases[name]
        expected = self[case["expected"]] if isinstance(case["expected"], str) else case["expected"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=case["tolerance"], err_msg=name)


@pytest.fixture(scope="session")
def goldens(shared_data):
    return Goldens(shared_data / "golden_metrics")


@pytest.fixture(scope="session")
def clips(goldens):
    """The frames, mask and mattes of the reference values, by the names that metrics have for them."""
    names = {"source": "source", "edited": "edited", "mask": "mask", "alpha": "matte_pred"}
    clip = {name: goldens[key] for name, key in (names | {"target_alpha": "matte_true"}).items()}
    return clip | {"source_as_stored": clip["source"], "mask_as_stored": clip["mask"]}
