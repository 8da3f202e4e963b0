"""What differs between two clips of a raw synthetic video, said as an instruction: the demo's annotator.

A video's log (one line of ``events.jsonl``) is a mapping::

    {"video": "videos/000000-….mp4", "frames": 412, "fps": 8.0, "width": 64, "height": 64, "scene_seed": …,
     "scenes": [{"start": 0, "end": 38, "background": "sand", "states": [
         {"start": 0, "end": 17, "objects": [{"identity": 0, "shape": "star", "colour": "red", "position": "top left",
                                              "x": 0.25, "y": 0.24, "size": 0.36}, …]}, …]}, …]}

Ranges are frames of the video, [start, end). Between two states lie the few frames in which something changes.
``position`` is there for objects of the size and at the places that "add" knows, null for all others; x and y are
fractions of the frame in the middle of the state, size is in units sqrt(height * width).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from icve.runtime.printable import json_lines
from icve.synthetic.edits import Edit
from icve.synthetic.instructions import choose_template, instruction

Clip = tuple[int, int]  # frames [start, end) of a video


def state_edits(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Edit] | None:
    """The edits that lead from one state of a scene to another; None if one of them cannot be put into words."""
    old = {obj["identity"]: obj for obj in before["objects"]}
    new = {obj["identity"]: obj for obj in after["objects"]}
    edits = []
    for identity in sorted(old | new):
        a, b = old.get(identity), new.get(identity)
        if a and not b:
            edits.append(Edit("remove", a["shape"], a["colour"]))
        elif b and not a:
            if b["position"] is None:
                return None
            edits.append(Edit("add", b["shape"], b["colour"], position=b["position"]))
        elif a and b and (a["shape"], a["colour"]) != (b["shape"], b["colour"]):
            kind = "recolour" if a["shape"] == b["shape"] else "replace"
            edits.append(Edit(kind, a["shape"], a["colour"], b["shape"], b["colour"]))
    return edits


def edits_between(log: Mapping[str, Any], clip_a: Clip, clip_b: Clip) -> list[Edit] | None:
    """The one or two edits that turn clip A into clip B.

    None if the clips are of different scenes, if something changes within one of them, if nothing or more than two
    things differ, or if a difference cannot be put into words.
    """
    before, after = _state(log, clip_a), _state(log, clip_b)
    if before is None or after is None or before[0] != after[0]:
        return None
    edits = state_edits(before[1], after[1])
    return edits if edits and len(edits) <= 2 else None


def read_events(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read ``events.jsonl``: log of each video by the name of its file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a log.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no event log {path}; icve synthesize raw writes one beside its videos.")
    logs = {}
    for number, line in enumerate(json_lines(path), 1):
        try:
            log = json.loads(line)
            logs[Path(log["video"]).name] = log
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of {path} is not an event log of icve synthesize raw.") from error
    return logs


def describe_pair(
    logs: Mapping[str, Mapping[str, Any]], video: str | Path, clip_a: Clip, clip_b: Clip, seed: int = 0
) -> dict[str, str] | None:
    """Columns ``instruction`` and ``edit_type`` of a clip pair, in the words of the paired edits' training split.

    Args:
        logs: of `read_events`.
        video: name of the file, in any folder.
        clip_a: frames [start, end) of the clip before the edit.
        clip_b: frames [start, end) of the clip after the edit; it may lie before clip A.
        seed: selects other templates.

    Returns:
        Two instructions are joined by "and", their types by "+" ("add+recolour"); None as in ``edits_between``, and for
        a video without a log.
    """
    name = Path(video).name
    edits = edits_between(logs[name], clip_a, clip_b) if name in logs else None
    if edits is None:
        return None
    digest = hashlib.blake2b(repr((seed, name, clip_a, clip_b)).encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    parts = [instruction(edit, choose_template(edit.edit_type, rng)[1]) for edit in edits]
    return {"instruction": " and ".join(parts), "edit_type": "+".join(edit.edit_type for edit in edits)}


def _state(log: Mapping[str, Any], clip: Clip) -> tuple[int, Mapping[str, Any]] | None:
    """(scene number, state) that holds throughout a clip."""
    for number, scene in enumerate(log["scenes"]):
        if scene["start"] <= clip[0] and clip[1] <= scene["end"]:
            for state in scene["states"]:
                if state["start"] <= clip[0] and clip[1] <= state["end"]:
                    return number, state
    return None
