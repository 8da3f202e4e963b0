"""Learning rates of parts of the model: an optimizer's parameter groups, split by the names of the parameters."""

import re
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

PATTERN = "pattern"  # entry of a group whose learning rate was scaled


def scale_learning_rates(optimizer: Optimizer, factors: Mapping[str, float]) -> None:
    """Multiply the learning rates of the parameters whose names match.

    Works on the groups that the optimizer has made, so that it may sort its parameters as it likes. State that was
    saved for parameters in another order is refused from then on: without names it would go to the wrong ones.

    Args:
        optimizer: built from named parameters, before its first step.
        factors: regular expression, searched in the name → factor of the learning rate, not negative; the first that
            matches counts, and parameters that none matches keep theirs.

    Raises:
        ValueError: a negative factor, no regular expression, or one that matches no parameter.
    """
    for pattern, factor in factors.items():
        if factor < 0:
            raise ValueError(f"The factor of '{pattern}' in model.schedule.parts must not be negative, got {factor}.")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"'{pattern}' in model.schedule.parts is no regular expression: {error}.") from error
    unmatched, groups = list(factors), []
    for group in optimizer.param_groups:
        parts: dict[str | None, dict[str, Any]] = {}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            first = next((pattern for pattern in factors if re.search(pattern, name)), None)
            unmatched = [pattern for pattern in unmatched if pattern != first]
            part = parts.setdefault(first, {**group, "params": [], "param_names": []})
            part["params"].append(parameter)
            part["param_names"].append(name)
        scaled = [{**part, "lr": part["lr"] * factors[p], PATTERN: p} for p, part in parts.items() if p is not None]
        groups += ([parts[None]] if None in parts else []) + scaled
    if unmatched:
        raise ValueError(
            f"'{unmatched[0]}' in model.schedule.parts matches no trained parameter that an earlier pattern "
            "does not: correct or remove it."
        )
    optimizer.param_groups[:] = groups
    optimizer.register_load_state_dict_pre_hook(_check_named)


def group_label(group: Mapping[str, Any], index: int) -> str:
    """Name of an optimizer's group in logs: its kind and its pattern, or else its place."""
    return "_".join(str(group[key]) for key in ("kind", PATTERN) if key in group) or str(index)


def check_names(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Check that a state belongs to an optimizer whose groups have the same parameters in the same order.

    Raises:
        ValueError: it does not, or knows no names.
    """
    saved, own = (
        [group.get("param_names") for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if saved != own:
        raise ValueError(
            "The checkpoint's optimizer has other groups of parameters than the configuration's: resume with the "
            "optimizer and model.schedule.parts of its config.yaml, or take only its weights with --resume_mode "
            "weights."
        )


def _check_named(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    if all("param_names" in group for group in state["param_groups"]):
        check_names(optimizer, state)
