"""Which precision a run computes in, where the user leaves it open ("auto").

Some CPUs multiply bfloat16 matrices several times faster than float32 ones (AVX-512-bf16, AMX), others fifty times
slower, as they emulate it. So on a CPU the two are measured, with a matrix product of the run's own size.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

AUTO = "auto"
# bfloat16 saves nothing but matrix products, so these have to be clearly faster.
WORTHWHILE = 1.5
SLOW = 5.0  # an explicit choice is warned about when matrix products are so many times slower in it
_FLOPS, _LEAST_ROWS = 2.0e8, 64  # size of a measured product: some milliseconds in float32 on one core
_PROBE = (64, 256, 256)  # 8 MFLOP: small enough to measure where 16 bits are emulated
_ROUNDS, _ENOUGH = 4, 0.1  # of a product: so many, or until they have taken so many seconds


@dataclass(frozen=True)
class MatmulTimes:
    """Seconds of one matrix product of a run's size on this CPU.

    Attributes:
        rows, width: of the product (rows, width) x (width, 4 width).
        backward: whether the products of the backward pass are included.
        float32, bfloat16: seconds.
    """

    rows: int
    width: int
    backward: bool
    float32: float
    bfloat16: float

    @property
    def faster(self) -> torch.dtype:
        """bfloat16 where it is worth its rounding, else float32."""
        return torch.bfloat16 if self.float32 >= WORTHWHILE * self.bfloat16 else torch.float32

    def slowdown(self, dtype: torch.dtype) -> float:
        """How many times longer products take in one of the two than in the other."""
        ratio = self.bfloat16 / self.float32
        return 1 / ratio if dtype == torch.float32 else ratio

    def __str__(self) -> str:
        passes = "forward and backward" if self.backward else "forward"
        return (
            f"a {self.rows} x {self.width} by {self.width} x {4 * self.width} product, {passes}, takes "
            f"{1000 * self.float32:.2g} ms in float32 and {1000 * self.bfloat16:.2g} ms in bfloat16 on this CPU"
        )


def measure_matmuls(tokens: int, width: int, backward: bool) -> MatmulTimes:
    """Time the largest kind of product of a transformer in float32 and bfloat16; takes well under a second.

    Args:
        tokens: that a pass of the run computes at once; fewer are taken where so many would take long.
        width: of the transformer, whose MLP is four times as wide.
        backward: also time the two products of the backward pass, as in training.
    """
    rows = min(tokens, max(_LEAST_ROWS, int(_FLOPS / (8 * width**2))))
    size = (rows, width, 4 * width)
    probed = [_seconds(*_PROBE, dtype, backward) for dtype in (torch.float32, torch.bfloat16)]
    single = _seconds(*size, torch.float32, backward)
    # Emulated, it would take too long at full size to say the same.
    emulated = probed[1] > SLOW * probed[0]
    half = single * probed[1] / probed[0] if emulated else _seconds(*size, torch.bfloat16, backward)
    return MatmulTimes(rows, width, backward, single, half)


@torch.inference_mode()
def _seconds(rows: int, inner: int, columns: int, dtype: torch.dtype, backward: bool) -> float:
    """Seconds of a product, the least of some rounds: other work on the machine only adds to it."""
    x, weight, grad = (
        torch.full(shape, 0.5, dtype=dtype) for shape in ((rows, inner), (columns, inner), (rows, columns))
    )
    least, began = float("inf"), time.perf_counter()
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        if started - began > _ENOUGH:
            break
        x @ weight.T
        if backward:
            grad @ weight
            grad.T @ x
        least = min(least, time.perf_counter() - started)
    return least


def training_precision(requested: str | None, device: str, processes: int, tokens: int, width: int) -> tuple[str, str]:
    """Lightning's name of the precision to train in, and one line about it ("" where there is nothing to say).

    Args:
        requested: "auto", or one of Lightning's names, which is returned as it is; None is "32-true".
        device: type of the device: "cpu", "cuda", "mps".
        processes: of the run. Several could measure differently, so on CPUs they all take float32.
        tokens, width: as for `measure_matmuls`.
    """
    if requested != AUTO:
        requested = str(requested or "32-true")
        dtype = _DTYPES.get(named(requested))
        if device != "cpu" or dtype is None:
            return requested, ""
        times = measure_matmuls(tokens, width, backward=True)
        if times.slowdown(dtype) < SLOW:
            return requested, ""
        other = "32-true" if dtype == torch.bfloat16 else "bf16-mixed"
        return requested, f"Precision {requested} is slow here: {times}; trainer.precision {other} is faster."
    if device == "cuda":
        chosen = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        return chosen, f"Precision {chosen} (auto, on a GPU)."
    if device != "cpu":
        return "32-true", f"Precision 32-true (auto, on {device})."
    if processes > 1:
        return "32-true", "Precision 32-true (auto, with several processes on CPUs)."
    times = measure_matmuls(tokens, width, backward=True)
    chosen = "bf16-mixed" if times.faster == torch.bfloat16 else "32-true"
    return chosen, f"Precision {chosen} (auto): {times}."


_DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16}
_FULL_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def named(precision: str | int) -> str:
    """Lightning's full name of a precision: "32" is "32-true", "bf16" is "bf16-mixed"."""
    return _FULL_NAMES.get(str(precision), str(precision))


def editing_dtype(
    requested: str, device: str, processes: int, tokens: int, width: int, stored: torch.dtype | None = None
) -> tuple[torch.dtype | None, str]:
    """Dtype of the transformer of an editor, and one line about it ("" where there is nothing to say).

    Args:
        requested: "auto", "32" or "bf16".
        device: type of the device that edits.
        processes: that edit together.
        tokens, width: as for `measure_matmuls`.
        stored: what "auto" means on an accelerator; None keeps the weights as they are stored.
    """
    if requested == AUTO and device == "mps":
        return torch.float32, ""  # not every Mac computes in bfloat16
    if device != "cpu":
        return {AUTO: stored, "32": torch.float32, "bf16": torch.bfloat16}[requested], ""
    if requested == AUTO and processes > 1:
        return torch.float32, ""
    times = measure_matmuls(tokens, width, backward=False)
    if requested == AUTO:
        name = str(times.faster).removeprefix("torch.")
        return times.faster, f"Precision {name} (auto): {times}."
    dtype = torch.float32 if requested == "32" else torch.bfloat16
    slow = times.slowdown(dtype) >= SLOW
    return dtype, f"Precision {requested} is slow here: {times}; auto is faster." if slow else ""


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Convolutions in all digits of float32: on GPUs, cuDNN rounds their inputs to TF32 unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def default_device() -> str:
    """The device that commands compute on unless told otherwise: a GPU, Apple's MPS (untried), or the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
