"""Lightning's trainer on the simulated accelerator."""

from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy


class SimulatedAccelerator(Accelerator):
    """The one device there is."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}

    @staticmethod
    def parse_devices(devices):
        return [torch.device("simacc", 0)]

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device("simacc", 0)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return "simacc"


def on_device(precision: str = "32", plugins: list[Any] | tuple = (), **options: Any) -> dict[str, Any]:
    """A Trainer's arguments, so that it trains on the device."""
    options = {name: value for name, value in options.items() if name not in ("accelerator", "devices")}
    plugins = list(plugins)
    if precision == "bf16-mixed":  # Lightning would cast for CUDA
        plugins.append(MixedPrecision("bf16-mixed", device="simacc"))
    strategy = SingleDeviceStrategy(device=torch.device("simacc", 0), accelerator=SimulatedAccelerator())
    chosen = None if precision == "bf16-mixed" else precision
    return {**options, "precision": chosen, "plugins": plugins, "strategy": strategy, "devices": 1}
