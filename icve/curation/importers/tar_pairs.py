"""Pairs in a tar shard as WebDataset lays them out: files of one sample share what stands before the first dot.

Of a sample ``KEY`` these are read:

    KEY.source.mp4, KEY.target.mp4   the clips, with any suffix of a video
    KEY.json                         an object with "instruction", and further columns
    KEY.txt                          the instruction, where there is no JSON or it has none
    KEY.mask.npz                     an edit mask, as `icve.data.masks` writes it
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from icve.data.media.video_folders import VIDEO_SUFFIXES
from icve.data.tables import Malformed, ManifestError, Record
from icve.runtime.storage.files import read_parts, tar_members
from icve.runtime.storage.remote_path import RemoteError

_AT_ONCE = 64  # texts that are asked for together


def tar_pairs(tar: Path) -> Iterator[Record | Malformed]:
    """A record for every sample of a shard: ``source``, ``target``, ``mask``, ``instruction`` and the JSON's columns.

    Paths are relative to the shard's folder, as in ``000.tar/KEY.source.mp4``; what a sample lacks is None.

    Raises:
        ManifestError: the shard is damaged or no tar file.
        RemoteError: its server does not give it.
    """
    try:
        members = tar_members(tar)
    except RemoteError:
        raise
    except OSError as error:
        raise ManifestError(f"{tar} cannot be read ({error.strerror}).") from error
    samples: dict[str, dict[str, str]] = {}
    for name in members:
        file = PurePosixPath(name)
        key, _, ending = file.name.partition(".")
        if key and ending:
            samples.setdefault((file.parent / key).as_posix(), {})[ending.lower()] = name
    keys = list(samples)
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        named = [samples[key][ending] for key in some for ending in ("json", "txt") if ending in samples[key]]
        places = [(members[name][0], sum(members[name])) for name in named if members[name][1]]
        filled = [name for name in named if members[name][1]]
        texts = dict(zip(filled, read_parts(tar, places), strict=True)) if places else {}
        yield from (_record(tar, key, samples[key], texts) for key in some)


def _record(tar: Path, key: str, files: dict[str, str], texts: dict[str, bytes]) -> Record | Malformed:
    record: dict[str, Any] = {"instruction": None}
    try:
        if "json" in files:
            value = json.loads(texts.get(files["json"], b""))
            if not isinstance(value, dict):
                return Malformed({"key": key}, f"is not a JSON object ({files['json']})")
            record |= value
        if "txt" in files and not record["instruction"]:
            record["instruction"] = texts.get(files["txt"], b"").decode("utf-8-sig").strip()
    except (ValueError, RecursionError) as error:
        return Malformed({"key": key}, f"has a text that cannot be read ({key}: {error})")
    record |= dict.fromkeys(("source", "target", "mask"))
    for ending, name in files.items():
        role, _, suffix = ending.partition(".")
        if (role in ("source", "target") and f".{suffix}" in VIDEO_SUFFIXES) or ending == "mask.npz":
            record[role] = f"{tar.name}/{name}"
    return record
