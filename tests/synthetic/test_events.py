import json

import pytest

from icve.synthetic.edits import Edit
from icve.synthetic.events import describe_pair, edits_between, read_events
from icve.synthetic.instructions import TRAIN_TEMPLATES, instruction


def obj(identity, shape, colour, position=None):
    return {"identity": identity, "shape": shape, "colour": colour, "position": position}


STAR, RING = obj(0, "star", "red"), obj(1, "ring", "blue")
CROSS = obj(2, "cross", "white", "top left")
LOG = {
    "video": "videos/a.mp4",
    "scenes": [
        {
            "start": 0,
            "end": 60,
            "states": [
                {"start": 0, "end": 12, "objects": [STAR, RING]},
                {"start": 15, "end": 27, "objects": [obj(0, "star", "green"), RING]},
                {"start": 30, "end": 42, "objects": [obj(0, "star", "green"), RING, CROSS]},
                {"start": 45, "end": 60, "objects": [obj(0, "square", "cyan"), CROSS]},
            ],
        },
        {"start": 60, "end": 80, "states": [{"start": 60, "end": 80, "objects": [STAR]}]},
    ],
}
FIRST, SECOND, THIRD, FOURTH, NEXT_SCENE = (1, 10), (15, 24), (33, 42), (50, 59), (62, 71)


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [
        (FIRST, SECOND, [Edit("recolour", "star", "red", "star", "green")]),
        (SECOND, FIRST, [Edit("recolour", "star", "green", "star", "red")]),
        (SECOND, THIRD, [Edit("add", "cross", "white", position="top left")]),
        (THIRD, SECOND, [Edit("remove", "cross", "white")]),
        (THIRD, FOURTH, [Edit("replace", "star", "green", "square", "cyan"), Edit("remove", "ring", "blue")]),
        (FOURTH, THIRD, None),  # the ring has no named place to be added at
        (FIRST, FOURTH, None),  # three things differ
        (FIRST, (2, 11), None),  # nothing differs
        (FIRST, NEXT_SCENE, None),
        ((8, 17), THIRD, None),  # the first changes within
        ((55, 64), FIRST, None),  # the first holds a cut
    ],
)
def test_differences_between_clips(a, b, edits):
    assert edits_between(LOG, a, b) == edits


def test_instructions_use_training_templates():
    logs = {"a.mp4": LOG}
    found = {describe_pair(logs, "a.mp4", FIRST, SECOND, seed)["instruction"] for seed in range(60)}
    edit = Edit("recolour", "star", "red", "star", "green")
    assert found == {instruction(edit, template) for template in TRAIN_TEMPLATES["recolour"]}
    two = describe_pair(logs, "a.mp4", THIRD, FOURTH)
    assert two["instruction"].count(" and ") == 1
    assert two["edit_type"] == "replace+remove"
    assert describe_pair(logs, "a.mp4", FIRST, NEXT_SCENE) is None


def test_descriptions_are_deterministic_and_leave_unknown_videos(tmp_path):
    (tmp_path / "events.jsonl").write_text(json.dumps(LOG) + "\n")
    logs = read_events(tmp_path / "events.jsonl")
    found = describe_pair(logs, "elsewhere/a.mp4", SECOND, THIRD, seed=3)
    assert found["edit_type"] == "add"
    assert found == describe_pair(logs, "a.mp4", SECOND, THIRD, seed=3)
    assert describe_pair(logs, "b.mp4", SECOND, THIRD) is None
    assert describe_pair(logs, "a.mp4", FIRST, FIRST) is None


def test_unreadable_logs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no event log"):
        read_events(tmp_path / "events.jsonl")
    (tmp_path / "events.jsonl").write_text('{"frames": 3}\n')
    with pytest.raises(ValueError, match="Line 1"):
        read_events(tmp_path / "events.jsonl")
