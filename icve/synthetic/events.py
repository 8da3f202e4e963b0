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
        elif a and b and a["shape"] != b["shape"]:
            edits.append(Edit("replace", a["shape"], a["colour"], b["shape"], b["colour"]))
        elif a and b and a["colour"] != b["colour"]:
            edits.append(Edit("recolour", a["shape"], a["colour"], b["shape"], b["colour"]))
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


def instruction_between(log: Mapping[str, Any], clip_a: Clip, clip_b: Clip, rng: np.random.Generator) -> str | None:
    """An instruction for what differs between two clips of a video, in the words of the paired edits' training split.

    Args:
        log: the video's event log.
        clip_a: frames [start, end) of the clip before the edit.
        clip_b: frames [start, end) of the clip after the edit; it may lie before clip A.
        rng: chooses among the templates.

    Returns:
        The instruction, two of them joined by "and" if two things differ; None as in ``edits_between``.
    """
    edits = edits_between(log, clip_a, clip_b)
    return None if edits is None else _in_words(edits, rng)


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


class EventAnnotator:
    """Annotates clip pairs of raw synthetic videos from their event log, for ``icve.synthetic.event_pairs``.

    Args:
        events: ``events.jsonl`` of the videos.
        seed: selects other templates.
    """

    def __init__(self, events: str | Path, seed: int = 0) -> None:
        self.logs = read_events(events)
        self.seed = seed

    def __call__(self, video: str | Path, clip_a: Clip, clip_b: Clip) -> dict[str, str] | None:
        """Columns ``instruction`` and ``edit_type`` ("add+recolour" if two things differ) of a clip pair, or None."""
        name = Path(video).name
        edits = edits_between(self.logs[name], clip_a, clip_b) if name in self.logs else None
        if edits is None:
            return None
        digest = hashlib.blake2b(repr((self.seed, name, clip_a, clip_b)).encode(), digest_size=8).digest()
        wording = _in_words(edits, np.random.default_rng(int.from_bytes(digest, "little")))
        return {"instruction": wording, "edit_type": "+".join(edit.edit_type for edit in edits)}


def _in_words(edits: list[Edit], rng: np.random.Generator) -> str:
    return " and ".join(instruction(edit, choose_template(edit.edit_type, rng)[1]) for edit in edits)


def _state(log: Mapping[str, Any], clip: Clip) -> tuple[int, Mapping[str, Any]] | None:
    """(scene number, state) that holds throughout a clip."""
    for number, scene in enumerate(log["scenes"]):
        if scene["start"] <= clip[0] and clip[1] <= scene["end"]:
            for state in scene["states"]:
                if state["start"] <= clip[0] and clip[1] <= state["end"]:
                    return number, state
    return None
