"""Pictures on their way to a model."""

import base64

import cv2
import numpy as np
import pytest

from icve.curation.annotate.jpegs import data_url, fit


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [((90, 160), 80, (45, 80)), ((160, 90), 80, (80, 45)), ((90, 160), 160, (90, 160)), ((2, 900), 90, (1, 90))],
)
def test_only_larger_pictures_are_scaled(shape, side, expected):
    picture = np.full((*shape, 3), 90, np.uint8)
    fitted = fit(picture, side)
    assert fitted.shape == (*expected, 3)
    assert (fitted == 90).all()


def test_png_keeps_every_value():
    picture = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    head, data = data_url(picture, "png").split(",")
    assert head == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[..., ::-1], picture)


def test_jpeg_quality_is_a_size():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [len(data_url(picture, "jpeg", quality)) for quality in (30, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < len(data_url(picture, "png")) / 3
