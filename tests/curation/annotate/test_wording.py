"""Measured changes in words."""

import itertools

import numpy as np
import pytest

from icve.curation.annotate.camera import CameraMove
from icve.curation.annotate.changes import Change
from icve.curation.annotate.edit_kinds import edit_type
from icve.curation.annotate.prompts import instruction_check
from icve.curation.annotate.wording import camera_wording, change_wording


def wordings(describe, change) -> set[tuple[str, str]]:
    return {describe(change, np.random.default_rng(seed)) for seed in range(40)}


@pytest.mark.parametrize(
    ("right", "up", "said", "unsaid"),
    [
        (0.2, 0.01, ["right"], ["left", "up", "down"]),
        (-0.2, 0.05, ["left"], ["right", "up", "down"]),
        (0.02, 0.2, ["up"], ["down", "left", "right"]),
        (0.0, -0.2, ["down"], ["up", "left", "right"]),
        (-0.2, 0.15, ["left", "up"], ["right", "down"]),
        (0.2, -0.2, ["right", "down"], ["left", "up"]),
    ],
)
def test_pans_name_their_directions(right, up, said, unsaid):
    found = wordings(camera_wording, CameraMove(right, up, 1.0, zooms=False))
    assert len(found) > 1
    for text, kind in found:
        words = text.rstrip(".").replace("ward", "").split()
        assert all(word in words for word in said)
        assert not any(word in words for word in unsaid)
        assert kind == "camera_pan"


@pytest.mark.parametrize(("scale", "said"), [(1.3, {"in", "closer"}), (0.7, {"out", "away", "back"})])
def test_zooms_name_their_direction(scale, said):
    for text, kind in wordings(camera_wording, CameraMove(0.0, 0.0, scale, zooms=True)):
        assert said & set(text.rstrip(".").split())
        assert kind == "camera_zoom"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((0.1, 0.5), "on the left side"),
        ((0.9, 0.5), "on the right side"),
        ((0.5, 0.1), "at the top"),
        ((0.5, 0.9), "at the bottom"),
        ((0.5, 0.5), "in the center"),
        ((0.1, 0.9), "in the bottom left corner"),
        ((0.7, 0.3), "at the top right"),
    ],
)
def test_places_have_names(place, said):
    for text, _ in wordings(change_wording, Change("add", "orange", place, 0.1)):
        assert said in text
        assert "an orange object" in text


@pytest.mark.parametrize(
    ("new_place", "said"),
    [((0.9, 0.5), "to the right."), ((0.1, 0.45), "to the left."), ((0.5, 0.1), "up."), ((0.8, 0.9), "down and to")],
)
def test_motion_has_a_direction(new_place, said):
    for text, _ in wordings(change_wording, Change("move", "red", (0.5, 0.5), 0.1, new_place=new_place)):
        assert said in text


def test_all_wordings_pass_for_instructions_of_their_type():
    moves = [CameraMove(*at, 1.0, False) for at in itertools.product((-0.2, 0.01, 0.2), (-0.15, 0.15))]
    moves += [CameraMove(0.0, 0.0, scale, True) for scale in (0.5, 1.5)]
    changes = [
        Change(kind, "red", place, 0.1, new_colour="blue", new_place=(0.5, 0.6))
        for kind in ("add", "remove", "move", "recolour")
        for place in itertools.product((0.1, 0.3, 0.5, 0.9), repeat=2)
    ]
    found = set().union(
        *(wordings(camera_wording, move) for move in moves), *(wordings(change_wording, change) for change in changes)
    )
    check = instruction_check()
    for text, kind in found:
        assert check(text) is None, text
        assert edit_type(text) == kind, text
