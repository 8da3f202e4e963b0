"""What measurement says of clips whose change is known."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from icve.curation.annotate.camera import CameraMove
from icve.curation.annotate.changes import Change
from icve.curation.annotate.measured import MeasuredAnnotator
from icve.curation.annotate.prompts import instruction_check
from icve.curation.stage import Rejected, Workspace
from icve.data.media.video import read_frames, write_video

HEIGHT, WIDTH = 180, 320
RED, GREEN, BLUE, GRAY = (205, 35, 30), (40, 160, 60), (40, 70, 210), (128, 128, 128)


def texture(seed: int, height: int = 2 * HEIGHT, width: int = 2 * WIDTH) -> np.ndarray:
    """A canvas (H, W, 3) uint8 of blotches of all sizes in dull colours, as walls, gravel and leaves have."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((height, width, 3), np.float32)
    for size in (2, 4, 8, 16, 32):
        small = rng.normal(0, 1, (height // size + 2, width // size + 2, 1)) + 0.2 * rng.normal(
            0, 1, (height // size + 2, width // size + 2, 3)
        )
        canvas += cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return (118 + 13 * canvas).clip(0, 255).astype(np.uint8)


def shown(canvas: np.ndarray, right: float = 0, down: float = 0, zoom: float = 1) -> np.ndarray:
    """What a camera sees that looks from the canvas's middle so many pixels to the right and down."""
    size = (WIDTH, HEIGHT)
    centre = (canvas.shape[1] / 2 + right, canvas.shape[0] / 2 + down)
    matrix = np.array([[zoom, 0, WIDTH / 2 - zoom * centre[0]], [0, zoom, HEIGHT / 2 - zoom * centre[1]]])
    return cv2.warpAffine(canvas, matrix, size, flags=cv2.INTER_AREA)


def clip(picture: np.ndarray, seed: int = 0, noise: float = 3.0) -> np.ndarray:
    """Five frames of a picture with a sensor's noise."""
    rng = np.random.default_rng(seed)
    return (picture + rng.normal(0, noise, (5, *picture.shape))).clip(0, 255).astype(np.uint8)


def drawn(picture: np.ndarray, colour: tuple[int, int, int], centre: tuple[float, float], radius: int = 24):
    """A shaded ball in a picture."""
    result = picture.copy()
    at = (round(centre[0] * WIDTH), round(centre[1] * HEIGHT))
    for step in range(radius, 0, -1):
        cv2.circle(result, at, step, tuple(round(value * (1 - 0.25 * step / radius)) for value in colour), -1)
    return result


@pytest.fixture(scope="module")
def stage() -> MeasuredAnnotator:
    return MeasuredAnnotator(side=WIDTH)


@pytest.mark.parametrize(
    ("seed", "right", "down", "expected"),
    [(0, 40, 0, (1, 0)), (1, -25, 4, (-1, 0)), (2, 2, 30, (0, -1)), (3, 0, -40, (0, 1)), (4, -60, 30, (-1, -1))],
)
def test_a_pan_goes_where_the_camera_went(stage, seed, right, down, expected):
    canvas = texture(seed)
    found = stage.measure(clip(shown(canvas)), clip(shown(canvas, right, down), 1))
    assert isinstance(found, CameraMove)
    assert not found.zooms
    assert found.right == pytest.approx(right / WIDTH, abs=0.01)
    assert found.up == pytest.approx(-down / HEIGHT, abs=0.01)
    back = stage.measure(clip(shown(canvas, right, down)), clip(shown(canvas), 1))
    assert back.right == pytest.approx(-found.right, abs=0.01)
    assert (np.sign(round(found.right, 1)), np.sign(round(found.up, 1))) == expected


@pytest.mark.parametrize("zoom", [1.3, 1.15, 0.85, 0.7])
def test_a_zoom_is_told_from_a_pan(stage, zoom):
    canvas = texture(5)
    found = stage.measure(clip(shown(canvas)), clip(shown(canvas, 5, 0, zoom), 1))
    assert isinstance(found, CameraMove)
    assert found.zooms
    assert found.scale == pytest.approx(zoom, rel=0.03)


@pytest.mark.slow
def test_directions_hold_for_real_pictures(stage, shared_data):
    """Windows of a real frame: all four directions and both zooms."""
    for name in ("src_squirrel.mp4", "icve_glasses.mp4"):
        frame = read_frames(shared_data / "videos" / "sources" / name, [5], size=(2 * HEIGHT, 2 * WIDTH))[0]
        frame = cv2.resize(frame, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
        for right, down, zoom in [(30, 0, 1), (-30, 0, 1), (0, 24, 1), (0, -24, 1), (0, 0, 1.25), (0, 0, 0.8)]:
            found = stage.measure(clip(shown(frame)), clip(shown(frame, right, down, zoom), 1))
            assert isinstance(found, CameraMove), (name, right, down, zoom, found)
            assert found.zooms is (zoom != 1)
            assert found.right == pytest.approx(right / WIDTH, abs=0.02)
            assert found.up == pytest.approx(-down / HEIGHT, abs=0.02)


def test_a_ball_that_appears_or_vanishes(stage):
    for seed, (colour, name) in enumerate([(RED, "red"), (GREEN, "green"), (BLUE, "blue")]):
        empty = shown(texture(seed))
        ball = drawn(empty, colour, (0.25, 0.5))
        added, removed = stage.measure(clip(empty), clip(ball, 1)), stage.measure(clip(ball), clip(empty, 1))
        assert isinstance(added, Change), added
        assert isinstance(removed, Change), removed
        assert (added.kind, removed.kind) == ("add", "remove")
        assert added.colour == removed.colour == name
        assert added.place == pytest.approx((0.25, 0.5), abs=0.03)
        assert added.area == pytest.approx(np.pi * 24**2 / WIDTH / HEIGHT, rel=0.3)


def test_a_ball_before_a_plain_wall(stage):
    wall = np.full((HEIGHT, WIDTH, 3), 170, np.uint8)
    found = stage.measure(clip(wall), clip(drawn(wall, BLUE, (0.6, 0.5)), 1))
    assert isinstance(found, Change), found
    assert (found.kind, found.colour) == ("add", "blue")


def test_a_change_under_a_camera_that_drifts(stage):
    """Less of a shift than a pan: it is undone before the clips are compared."""
    canvas = texture(7)
    ball = drawn(shown(canvas, 6, -3), RED, (0.7, 0.4))
    found = stage.measure(clip(shown(canvas)), clip(ball, 1))
    assert isinstance(found, Change), found
    assert (found.kind, found.colour) == ("add", "red")


def test_a_ball_that_changes_its_colour(stage):
    empty = shown(texture(3))
    for old, new in [((RED, "red"), (BLUE, "blue")), ((BLUE, "blue"), (GREEN, "green"))]:
        found = stage.measure(clip(drawn(empty, old[0], (0.5, 0.6))), clip(drawn(empty, new[0], (0.5, 0.6)), 1))
        assert isinstance(found, Change), found
        assert (found.kind, found.colour, found.new_colour) == ("recolour", old[1], new[1])


@pytest.mark.parametrize(("old", "new"), [((0.25, 0.5), (0.7, 0.5)), ((0.6, 0.25), (0.6, 0.75))])
def test_a_ball_that_moves(stage, old, new):
    empty = shown(texture(4))
    found = stage.measure(clip(drawn(empty, RED, old)), clip(drawn(empty, RED, new), 1))
    assert isinstance(found, Change), found
    assert (found.kind, found.colour) == ("move", "red")
    assert found.place == pytest.approx(old, abs=0.03)
    assert found.new_place == pytest.approx(new, abs=0.03)


def saturated(picture: np.ndarray, factor: float) -> np.ndarray:
    grey = picture.astype(np.float32).mean(-1, keepdims=True)
    return (grey + factor * (picture - grey)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture,
        lambda picture: (picture * 0.7).astype(np.uint8),
        lambda picture: (picture.astype(float) + 30).clip(0, 255).astype(np.uint8),
        lambda picture: ((picture.astype(float) - 128) * 1.25 + 128).clip(0, 255).astype(np.uint8),
        lambda picture: saturated(picture, 1.6),
        lambda picture: saturated(picture, 0.3),
        lambda picture: cv2.GaussianBlur(picture, (0, 0), 1.0),
    ],
    ids=["none", "darker", "brighter", "contrast", "saturated", "pale", "soft"],
)
@pytest.mark.parametrize("coloured", [False, True])
def test_nothing_is_said_of_light_contrast_saturation_and_noise(stage, change: Callable, coloured):
    picture = shown(texture(6))
    if coloured:  # things with strong colours, whose looks change most
        picture = drawn(drawn(picture, RED, (0.3, 0.4)), BLUE, (0.7, 0.6), 30)
    found = stage.measure(clip(picture), clip(change(picture), 1, noise=6.0))
    assert isinstance(found, str), found


def test_nothing_is_said_of_what_is_not_clear(stage):
    a, b = shown(texture(8)), shown(texture(9))
    assert isinstance(stage.measure(clip(a), clip(b)), str)  # two scenes
    flat = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)
    assert isinstance(stage.measure(clip(flat), clip(flat, 1)), str)  # nothing to see
    many = a
    for number in range(6):
        many = drawn(many, (RED, GREEN, BLUE)[number % 3], (0.15 + 0.14 * number, 0.3 + 0.4 * (number % 2)), 14)
    assert isinstance(stage.measure(clip(a), clip(many)), str)  # no one change above all
    grayish = drawn(a, (150, 125, 120), (0.5, 0.5))
    assert isinstance(stage.measure(clip(a), clip(grayish)), str)  # a thing without a name
    small = drawn(a, RED, (0.5, 0.5), 5)
    assert isinstance(stage.measure(clip(a), clip(small)), str)


def test_a_thing_that_moves_all_the_time_is_no_change(stage):
    """A ball crosses both clips at the same speed: it is in neither clip's ground, and at no one place."""
    ground = shown(texture(10))

    def crossing(start: float) -> np.ndarray:
        return np.concatenate([clip(drawn(ground, RED, (start + 0.15 * k, 0.5)), k)[:1] for k in range(5)])

    assert isinstance(stage.measure(crossing(0.15), crossing(0.22)), str)


def test_a_part_of_a_thing_is_not_taken_for_a_thing(stage):
    """A large red shape grows: what came is red, has edges, and yet no object was added."""
    ground = shown(texture(11))
    before, after = ground.copy(), ground.copy()
    cv2.rectangle(before, (100, 60), (180, 130), RED, -1)
    cv2.rectangle(after, (100, 60), (220, 130), RED, -1)
    found = stage.measure(clip(before), clip(after, 1))
    assert isinstance(found, str), found


def test_rows_go_through_files(tmp_path):
    """One video that holds both clips: kept rows have an instruction that passes for one, others a reason."""
    canvas = texture(12)
    frames = np.concatenate(
        [
            np.stack([shown(canvas, k) for k in range(9)]),
            np.stack([shown(canvas, 60 + k) for k in range(9)]),
            np.stack([drawn(shown(canvas, k), RED, (0.5 - k / WIDTH, 0.5)) for k in range(9)]),
        ]
    )
    write_video(tmp_path / "a.mp4", frames, 10)
    work = Workspace(tmp_path, tmp_path / "run", tmp_path)

    def row(key, source, target, **columns):
        path = {"source_path": "a.mp4", "target_path": "a.mp4"}
        spans = {"source_start": source, "source_frames": 9, "target_start": target, "target_frames": 9}
        return {"key": key, **path, **spans, **columns}

    stage = MeasuredAnnotator(side=256)
    rows = [row("pan", 0, 9, scene_id=3), row("back", 9, 0), row("add", 0, 18), row("same", 0, 0)]
    pan, back, add, same = outcomes = stage(rows, work)
    assert {**rows[0], "instruction": pan["instruction"], "edit_type": "camera_pan", "measured": pan["measured"]} == pan
    assert "right" in pan["instruction"]
    assert "left" in back["instruction"]
    assert add["edit_type"] == "add"
    assert "red object" in add["instruction"]
    assert isinstance(same, Rejected)
    assert same.reason == "nothing to say"
    assert same.detail
    assert all(instruction_check()(kept["instruction"]) is None for kept in (pan, back, add))
    # The same rows give the same words again, another seed may choose others.
    assert stage(rows[:1], work) == outcomes[:1]
    others = {MeasuredAnnotator(side=256, seed=seed)(rows[:1], work)[0]["instruction"] for seed in (1, 2)}
    assert others - {pan["instruction"]}


@pytest.mark.parametrize(
    "wrong",
    [{"min_shift": 0}, {"min_zoom": 0.9}, {"min_area": 0.5}, {"max_area": 2}, {"min_agreement": 0}, {"side": 9}],
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MeasuredAnnotator(**wrong)
