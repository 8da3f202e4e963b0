"""The demo's pipeline on raw synthetic videos, whose cuts and changes are known."""

from collections import Counter

import pytest

from icve.curation.raw_videos import find_inputs
from icve.curation.stage import Workspace
from icve.curation.stage_list import load_pipeline
from icve.synthetic.event_pairs import EventPairs
from icve.synthetic.events import edits_between, read_events
from icve.synthetic.raw_files import synthesize_raw
from tests.curation.running import run_stages

ROLES = ("source", "target")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """(logs, scenes, workspace) of a video after all stages but the last."""
    folder = tmp_path_factory.mktemp("raw")
    logs = read_events(synthesize_raw(folder, 1, split="train", seed=7))
    inputs = find_inputs(folder / "videos")
    work = Workspace(inputs.root, tmp_path_factory.mktemp("out"), inputs.root)
    stages = [stage.build() for stage in load_pipeline("clip_pairs_synthetic.yaml").stages]
    assert isinstance(stages[-1], EventPairs)
    scenes, rejected = run_stages(stages[:-1], inputs.read(inputs.names), work)
    assert rejected == []
    return logs, scenes, work


def pairs(raw, **parameters):
    _, scenes, work = raw
    return run_stages([EventPairs("../events.jsonl", 9, 8.0, **parameters)], scenes, work)


def span(row, role):
    return row[f"{role}_start"], row[f"{role}_start"] + row[f"{role}_frames"]


def test_scenes_are_those_of_the_log(raw):
    logs, scenes, _ = raw
    for name, log in logs.items():
        found = [(row["scene_start"], row["scene_end"]) for row in scenes if row["video"] == name]
        assert found == [(scene["start"], scene["end"]) for scene in log["scenes"]]


def test_clips_stay_within_a_scene_and_apart(raw):
    rows, rejected = pairs(raw, pairs_per_scene=3)
    assert len(rows) > 20
    for row in rows:
        assert row["source_path"] == row["target_path"] == row["video"]
        (first, second), (third, fourth) = sorted(span(row, role) for role in ROLES)
        assert row["scene_start"] + 2 <= first < second <= third < fourth <= row["scene_end"] - 2
        assert second - first == fourth - third == 9
    of_scene = Counter(row["key"].rpartition("/")[0] for row in rows)
    assert max(of_scene.values()) == 3
    assert len(of_scene) + len(rejected) == len(raw[1])
    assert len({(row["video"], *span(row, "source"), *span(row, "target")) for row in rows}) == len(rows)


def test_instructions_say_what_differs_in_either_order(raw):
    logs, _, _ = raw
    rows, _ = pairs(raw)
    for row in rows:
        edits = edits_between(logs[row["video"]], *(span(row, role) for role in ROLES))
        assert row["edit_type"] == "+".join(edit.edit_type for edit in edits)
        assert all(edit.colour in row["instruction"] for edit in edits)
    orders = Counter(row["source_start"] < row["target_start"] for row in rows)
    assert min(orders[True], orders[False]) > 3


def test_pairs_depend_on_key_and_seed_alone(raw):
    logs, scenes, work = raw
    rows, _ = pairs(raw)
    alone, _ = pairs((logs, scenes[-5:], work))
    assert alone == rows[-len(alone) :]
    assert pairs(raw, seed=1)[0] != rows


def test_scenes_that_give_no_pair_are_rejected_with_the_reason(raw):
    logs, scenes, work = raw
    of_log = [scene for name in sorted(logs) for scene in logs[name]["scenes"]]
    # Long enough for two clips of 9 frames and margins of 2, before anything changes.
    calm = next(
        row for row, scene in zip(scenes, of_log, strict=True) if scene["states"][0]["end"] >= scene["start"] + 22
    )
    short, still = (calm | {"key": str(length), "scene_end": calm["scene_start"] + length} for length in (21, 22))
    _, rejected = pairs((logs, [short, still], work))
    assert rejected == [("EventPairs", "21", "scene too short"), ("EventPairs", "22", "nothing to say")]
