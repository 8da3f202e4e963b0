"""Lightning's trainer, whose precision may be left open."""

from typing import Any, Literal

from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Trainer

Precision = Literal["auto"] | _PRECISION_INPUT


class EditTrainer(Trainer):
    """Lightning's `Trainer` for `icve fit`.

    Args:
        *args, **kwargs: as for `Trainer`.
        precision: as for `Trainer`, or "auto": bf16-mixed on GPUs that compute in it; on a CPU what a measurement at
            the start of the run finds faster (:mod:`icve.runtime.precision`), and what it began with when it is
            resumed. The command measures: given to this class directly, "auto" is "32-true".
    """

    def __init__(self, *args: Any, precision: Precision | None = "auto", **kwargs: Any) -> None:
        super().__init__(*args, precision="32-true" if precision == "auto" else precision, **kwargs)
