"""pytest -p tests.accelerator.plugin: registers the simulated accelerator, and offers what its tests use."""

import lightning.pytorch as L
import pytest

from tests.accelerator.device import enable

DEVICE = enable()  # before anything reads weights

from icve.training.checkpoints.checkpoint_io import CheckpointFolders  # noqa: E402
from tests.accelerator.lightning_device import on_device  # noqa: E402
from tests.training.conftest import TinyPairs, make_losses, make_module  # noqa: E402, F401 (fixtures)


class PinnedPairs(TinyPairs):
    """The tiny pairs as loaders give them on an accelerator: in pinned memory."""

    def batch(self, number):
        batch = super().batch(number)
        return {name: value.pin_memory() if hasattr(value, "pin_memory") else value for name, value in batch.items()}


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def make_data():
    return PinnedPairs


@pytest.fixture
def make_trainer(tmp_path):
    """Trainer(steps, callbacks, on="cpu" or "simacc")."""

    def make(max_steps, callbacks=(), on="simacc", precision="32", **options):
        options = {
            "max_steps": max_steps,
            "default_root_dir": tmp_path / on,
            "callbacks": list(callbacks),
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(hasattr(callback, "keep_last") for callback in callbacks),
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": 1000,
            "gradient_clip_val": 1.0,
            **options,
        }
        if on == "simacc":
            return L.Trainer(**on_device(precision, [CheckpointFolders()], **options))
        return L.Trainer(accelerator="cpu", devices=1, precision=precision, plugins=[CheckpointFolders()], **options)

    return make
