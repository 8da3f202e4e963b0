"""What a run is trained on, as its checkpoints remember it, and what of that is another when the run is resumed."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from icve.data.manifest import parquet_parts
from icve.runtime.storage.files import local_copy
from icve.runtime.storage.remote_path import as_path

_CHANGES = {"batch_size": "batch size", "tokens_per_batch": "tokens per batch", "num_workers": "loader workers"}
_CHANGES |= {"transforms": "transforms", "references": "reference pictures", "temporal_crop": "temporal crop"}
_PLAIN = (str, int, float, bool, list, tuple)


def data_record(data: Any, stage: str) -> dict[str, Any]:
    """The training manifests' content and number of rows, and settings of what is drawn of them and how.

    {} on all ranks but the first, which writes `trainer.ckpt`: a manifest is read whole.

    Args:
        data: a data module; of a curriculum's, the stage's own is looked at. What it does not have is left out.
        stage: name of the training stage.
    """
    if getattr(rank_zero_only, "rank", 0):
        return {}
    data = _of_stage(data, stage)
    record = {name: getattr(data, name) for name in _CHANGES if hasattr(data, name)}
    if "transforms" in record:
        record["transforms"] = ", ".join(map(_described, record["transforms"])) or "none"
    manifests = [of.manifest for of in getattr(data, "data_sets", ())] or [getattr(data, "manifest", None)]
    contents = [_content(as_path(manifest)) for manifest in manifests if isinstance(manifest, str)]
    if contents:
        record["manifest"] = contents[0] if len(contents) == 1 else contents
    if selections := [each for each in (getattr(data, "train", None), *getattr(data, "mixed", [])) if each is not None]:
        record["rows"] = sum(each.rows for each in selections)
    return record


def data_changes(saved: dict[str, Any], data: Any, stage: str) -> str | None:
    """What has changed since a checkpoint's record was made, in one sentence; None for nothing.

    The number of rows is read only where the manifest's content is another.
    """
    now, changes = data_record(data, stage), []
    if "manifest" in saved and "manifest" in now and saved["manifest"] != now["manifest"]:
        data, rows, before = _of_stage(data, stage), None, saved.get("rows")
        with contextlib.suppress(AttributeError, ValueError, OSError):  # reported when the data is set up
            found = [data.rows(of) for of in getattr(data, "data_sets", None) or [data.manifest]]
            rows = sum(len(each) + len(getattr(each, "rejected", ())) for each in found)  # as a selection counts them
        counts = f"{before} rows" if rows == before else f"{before} rows, then {rows}"
        changes.append("the training data" + (f" ({counts})" if None not in (rows, before) else ""))
    for name, title in _CHANGES.items():
        if name in saved and name in now and saved[name] != now[name]:
            changes.append(f"the {title} ({saved[name]}, then {now[name]})")
    return f"Changed since the checkpoint: {', '.join(changes)}." if changes else None


def _of_stage(data: Any, stage: str) -> Any:
    stages = getattr(data, "stages", None)
    return stages.get(stage) if isinstance(stages, dict) else data


def _described(transform: Any) -> str:
    """A transform with its settings, as far as they are plain values."""
    settings = {name: value for name, value in vars(transform).items() if isinstance(value, _PLAIN)}
    return f"{type(transform).__name__}({', '.join(f'{name}={value!r}' for name, value in sorted(settings.items()))})"


def _content(path: Path) -> str | None:
    """Digest of a manifest's bytes, or of its Parquet parts'; None where it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        path = local_copy(path)
        for part in parquet_parts(path) if path.is_dir() else [path]:
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    except OSError:
        return None
    return digest.hexdigest()
