"""How far two views of a scene agree, and what of them can be believed."""

import cv2
import numpy as np
import pytest

from icve.curation.annotate.camera import (
    CameraMove,
    Described,
    View,
    agreement,
    camera_move,
    correlation,
    find_view,
    is_still,
    warp,
)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    layers = [
        cv2.resize(rng.normal(0, 1, (150 // size, 250 // size)), (250, 150), interpolation=cv2.INTER_CUBIC)
        for size in (3, 8, 20)
    ]
    grey = (120 + 25 * sum(layers)).clip(0, 255).astype(np.uint8)
    return np.stack([grey] * 3, -1)


@pytest.mark.parametrize(("scale", "turn", "x", "y"), [(1, 0, 17, -9), (1.2, 3, -8, 5), (0.85, -5, 4, 12)])
def test_a_view_is_the_transform_that_made_it(picture, scale, turn, x, y):
    matrix = cv2.getRotationMatrix2D((125, 75), -turn, scale)
    matrix[:, 2] += x, y
    moved, seen = warp(picture, matrix)
    view = find_view(Described(picture), Described(moved))
    corners = np.array([[20, 20, 1], [230, 20, 1], [20, 130, 1], [230, 130, 1]], float)
    assert np.abs(corners @ view.matrix.T - corners @ matrix.T).max() < 0.7
    assert view.scale == pytest.approx(scale, rel=0.01)
    assert view.turn == pytest.approx(turn, abs=0.3)
    assert view.shift((150, 250)) == pytest.approx((x / 250, y / 150), abs=0.005)
    assert view.agreement > 0.95 > 0.5 > view.still
    assert seen.all() == (scale > 1)
    assert seen.mean() > 0.5


def test_agreement_does_not_see_light(picture):
    grey = picture[..., 0]
    dim = (0.5 * grey + 20).astype(np.uint8)
    assert agreement(grey, dim) > 0.99
    assert agreement(grey, 255 - grey) == 0
    assert agreement(grey, np.roll(grey, 40, 1)) < 0.3
    assert agreement(np.full_like(grey, 9), np.full_like(grey, 9)) == 0  # nothing to agree on
    same, textured = correlation(grey, dim)
    assert same.shape == textured.shape == grey.shape
    assert np.abs(same).max() <= 1.0001


def test_still_views_are_known_with_and_without_texture(picture):
    grey = picture[..., 0]
    flat = np.full_like(grey, 90)
    assert is_still(grey, (0.8 * grey).astype(np.uint8))
    assert not is_still(grey, np.roll(grey, 6, 1))
    assert is_still(flat, flat + 40)
    assert not is_still(grey, flat)


def test_too_little_in_common_is_no_view(picture):
    other = np.rot90(picture, 2)[:, ::-1].copy()
    assert find_view(Described(picture), Described(np.full_like(picture, 128))) is None
    found = find_view(Described(picture), Described(other))
    assert found is None or found.agreement < 0.3


def view(x: float = 0.0, y: float = 0.0, scale: float = 1.0, agreement: float = 0.9, still: float = 0.1) -> View:
    """The view of a picture of 100 x 100 whose centre moved by (x, y) pixels."""
    centre = 49.5
    return View(
        np.array([[scale, 0, x + centre * (1 - scale)], [0, scale, y + centre * (1 - scale)]]), agreement, still
    )


def move(*views: View | None):
    return camera_move(views, (100, 100), min_shift=0.05, min_zoom=1.1, min_agreement=0.4)


def test_what_is_seen_moves_against_the_camera():
    found = move(view(10, -4), view(12, -5), view(8, -4))
    assert found == CameraMove(right=pytest.approx(-0.1), up=pytest.approx(-0.04), scale=pytest.approx(1), zooms=False)
    assert move(view(scale=1.3), view(scale=1.2), None).zooms
    assert not move(view(30, scale=1.2), view(30, scale=1.2)).zooms  # the pan is what one sees most


def test_nothing_is_said_of_views_that_differ_or_that_a_thing_made():
    assert move(view(2), view(-1), view(1)) is None  # still
    assert "too little in common" in move(view(10), None, None)
    assert "too little in common" in move(view(10, agreement=0.3), view(10), view(10, agreement=0.2))
    assert "alike" in move(view(10), view(10), view(-1))
    assert "something moved" in move(view(10), view(10, agreement=0.6, still=0.55), view(10))
