"""Why a checkpoint's tensors do not fit a model: what is missing, too much or misshaped, and the likely cause."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Tensors = Mapping[str, Tensor]


def differences(
    expected: Tensors, given: Tensors, cause: Callable[[Sequence[str], Sequence[str]], str | None]
) -> str | None:
    """The first missing, unexpected and misshaped tensors and their likely cause, or None where all fit.

    Args:
        expected: what the configured model has.
        given: what the checkpoint holds, under the model's names.
        cause: from the missing and the unexpected names, what is likely behind them, if that is known.
    """
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    misshaped = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    problems = [f"missing '{missing[0]}' ({len(missing)} in all)"] if missing else []
    problems += [f"unexpected '{unexpected[0]}' ({len(unexpected)} in all)"] if unexpected else []
    for key in misshaped[:1]:
        shapes = f"{tuple(given[key].shape)} where the model has {tuple(expected[key].shape)}"
        problems.append(f"'{key}' is {shapes} ({len(misshaped)} misshaped in all)")
    if not problems:
        return None
    found = cause(missing, unexpected)
    return "; ".join(problems) + (f"; likely {found}" if found else "")


def block_count(tensors: Tensors, blocks: str) -> int:
    """Number of the last block of a kind ("blocks."), counted from 1."""
    numbers = [0]
    for key in tensors:
        before, found, after = key.partition(blocks)
        number = after.split(".")[0]
        if found and not before.endswith("_") and number.isdigit():
            numbers.append(int(number) + 1)
    return max(numbers)
