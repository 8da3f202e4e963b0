"""Several data sets as one: what a configuration says of each, and their samples in one batch."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from icve.data.buckets import Draw, StepSizes
from icve.data.cells import table_rows
from icve.data.manifest import Manifest
from icve.data.mixture_sampler import Drawn, MixtureSampler
from icve.data.selection import Selection

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """One data set of a mixture.

    Args:
        manifest: its rows, see :func:`icve.data.manifest.read_manifest`.
        weight: its share of all samples, beside the other weights; 0 does not draw from it.
        name: in logs and figures; by default the manifest's, without suffix. Its rows' order depends on it.
        edit_types: only rows whose `edit_type` is one of these.
        prefix: put before every instruction as it is, with its spaces; a part of what `icve encode` encodes.
        loss_weight: what the losses of its samples are multiplied by. The step's loss stays the sum over its samples by
            their number: other samples weigh what they weighed.
        root, columns: of the manifest; None takes the data module's.

    Raises:
        ValueError: a value is out of range.
    """

    manifest: str
    weight: float = 1.0
    name: str = ""
    edit_types: list[str] | None = None
    prefix: str = ""
    loss_weight: float = 1.0
    root: str | None = None
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", PurePath(self.manifest).stem)
        for option in ("weight", "loss_weight"):
            value = getattr(self, option)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{option} of the data set '{self.name}' must be at least 0, got {value}.")
        if self.edit_types is not None and not self.edit_types:
            raise ValueError(f"edit_types of the data set '{self.name}' is empty: leave it out to take all rows.")

    def of(self, manifest: Manifest) -> Manifest:
        """The manifest's rows that belong to the data set, with its instructions.

        Raises:
            ValueError: there are none.
        """
        if self.edit_types is None and not self.prefix:
            return manifest
        batches: list[pa.RecordBatch] = []
        types: set[str] = set()
        for batch in manifest.batches:
            if self.edit_types is not None:
                there = [name for name in batch.schema.names if name == "edit_type"]
                own = [row.get("edit_type") for row in table_rows(batch.select(there))] or [None] * len(batch)
                types.update(map(str, own))
                batch = batch.filter(pa.array([value in self.edit_types for value in own], pa.bool_()))
            batches.append(self._prefixed(batch) if self.prefix else batch)
        chosen = Manifest.of_batches(batches, manifest.names, manifest.root, manifest.rejected, manifest.path)
        if self.edit_types is not None:
            if not len(chosen):
                raise ValueError(
                    f"No row of {self.manifest} has an edit_type of {', '.join(self.edit_types)}; it has "
                    f"{', '.join(sorted(types)[:10])}."
                )
            log.info("%s: %d of %d rows have its edit_types.", self.name, len(chosen), len(manifest))
        return chosen

    def _prefixed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows with the prefix before their instructions, where they have one."""
        place = batch.schema.get_field_index("instruction")
        texts = batch.column(place)
        said = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(texts), ""), False)
        texts = pc.if_else(said, pc.binary_join_element_wise(self.prefix, texts, ""), texts)
        return batch.set_column(place, batch.schema.field(place), texts)


def as_data_sets(entries: Sequence[DataSet | Mapping[str, Any]]) -> list[DataSet]:
    """Entries of a configuration, parsed or as they stand in YAML.

    Raises:
        ValueError: there is none, or two have one name.
    """
    sets = [entry if isinstance(entry, DataSet) else DataSet(**entry) for entry in entries]
    if not sets:
        raise ValueError("mixture is empty: list at least one data set, or give manifest.")
    repeated = [name for name, count in Counter(entry.name for entry in sets).items() if count > 1]
    if repeated:
        raise ValueError(f"Two data sets of the mixture are named '{repeated[0]}': give each a name of its own.")
    return sets


class MixedPairs(Dataset[dict[str, Any]]):
    """Samples of several data sets; the rows of one follow those of the one before. They also have ``data_set``, its
    name, and ``loss_weight``.

    Args:
        sets: what they are.
        pairs: of each, a data set of :class:`icve.data.pair_dataset.PairDataset`'s kind.
    """

    def __init__(self, sets: Sequence[DataSet], pairs: Sequence[Any]) -> None:
        self.sets, self.pairs = list(sets), list(pairs)
        self._firsts = [0, *accumulate(len(of) for of in pairs)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        number = bisect_right(self._firsts, draw.row) - 1
        own = self.sets[number]
        sample = self.pairs[number][draw._replace(row=draw.row - self._firsts[number])]
        dropped = [(f"{own.name}/{name}", reason) for name, reason in sample["dropped"]]
        return {**sample, "dropped": dropped, "data_set": own.name, "loss_weight": own.loss_weight}


def continued_sampler(
    state: Mapping[str, Any] | None,
    sets: Sequence[DataSet],
    selections: Sequence[Selection],
    sizes: StepSizes,
    seed: int,
    rank: int,
    done: int,
    ratios: Sequence[float] | None,
) -> MixtureSampler:
    """The sampler of a run: one that is resumed goes on where its checkpoint was, with the same mixture or another.

    Args:
        state: of the checkpoint, :meth:`MixtureSampler.state`; None where there is none, or it had no mixture.
        sets: the mixture.
        selections: their rows, which are numbered as in :class:`MixedPairs`.
        sizes, seed, rank, ratios: see :class:`MixtureSampler`.
        done: micro-batches.

    Raises:
        ValueError: the mixture changes in the middle of a step.
    """
    firsts = accumulate((len(selection.pairs) for selection in selections), initial=0)
    members = {
        entry.name: [np.asarray(rows, dtype=np.int64) + first for rows in selection.members(len(sizes.buckets))]
        for entry, selection, first in zip(sets, selections, firsts, strict=False)  # one more: where the next would be
    }
    weights = {entry.name: entry.weight for entry in sets}
    make = partial(MixtureSampler, members, weights, sizes, seed, rank, done, ratios)
    sampler = make()
    if state is None:
        return sampler
    if state["schedule"] == sampler.schedule:
        return make(Drawn(state["since"], state["before"]))
    if done != state["step"] * sizes.micro_steps:
        raise ValueError(
            "The checkpoint is from the middle of a step, which began with another mixture: resume it with that one, "
            "or from another checkpoint."
        )
    log.info(
        "The mixture changes at step %d, from weights %s to %s; drawn so far: %s.",
        state["step"],
        _listed(state["weights"]),
        _listed(weights),
        _listed({name: sum(of.values()) for name, of in state["drawn"].items()}),
    )
    return make(Drawn(state["step"], state["drawn"]))


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
