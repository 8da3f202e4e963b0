"""What is asked of a latent cache for many rows at once: the texts of `request_of`, as an Arrow column."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from icve.data.buckets import Bucket
from icve.data.cache.latents import request_of
from icve.data.manifest_table import batch_column
from icve.data.selection import Pair

# A request with these values shows where each row's own go.
_PLACES: dict[str, str | int] = {
    "instruction": "@instruction@",
    "source_start": -101,
    "source_frames": -102,
    "target_start": -103,
    "target_frames": -104,
}
_NAMES = {json.dumps(value): name for name, value in _PLACES.items()}


def requests_of(
    rows: pa.RecordBatch,
    numbers: np.ndarray,
    buckets: Sequence[Bucket],
    fps: float | None,
    read: Callable,
    references: bool = False,
) -> pa.Array:
    """:func:`icve.data.cache.latents.request_of` of rows of a manifest.

    Args:
        rows: (N,) of them.
        numbers: (N,) the bucket of each.
        buckets, fps, read: as there.
        references: whether pairs have the pictures of their rows.
    """
    values = {name: batch_column(rows, name) for name in _PLACES}
    texts = {"instruction": _json(values.pop("instruction"))}
    for name, column in values.items():
        texts[name] = pc.fill_null(column.cast(pa.string()), "0" if name.endswith("start") else "null")
    masked = batch_column(rows, "mask_path").is_valid().to_numpy(zero_copy_only=False)
    referred = batch_column(rows, "reference_path").is_valid().to_numpy(zero_copy_only=False) & references
    asked = pa.nulls(len(rows), pa.string())
    for number in np.unique(numbers).tolist():
        for mask, reference in product((None, "@mask@"), (None, "@reference@")):
            here = pa.array(
                (numbers == number) & (masked == (mask is not None)) & (referred == (reference is not None))
            )
            if here.true_count:
                files = {"source": "", "target": "", "mask": mask, "reference": reference}
                pair = Pair(id="", bucket=number, **files, **_PLACES)  # type: ignore[arg-type]
                pieces = re.split(f"({'|'.join(_NAMES)})", request_of(pair, buckets[number], fps, read))
                parts = [texts[_NAMES[piece]] if piece in _NAMES else piece for piece in pieces]
                asked = pc.if_else(here, pc.binary_join_element_wise(*parts, ""), asked)
    return asked


def _json(texts: pa.Array) -> pa.Array:
    quoted = pc.binary_join_element_wise('"', texts, '"', "")
    special = pc.fill_null(pc.match_substring_regex(texts, r'[^ -~]|["\\]'), False)
    if not special.true_count:
        return quoted
    spelled = [json.dumps(text) for text in texts.filter(special).to_pylist()]
    return pc.replace_with_mask(quoted, special, pa.array(spelled, pa.string()))
