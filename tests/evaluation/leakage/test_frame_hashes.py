import cv2
import numpy as np

from icve.evaluation.leakage.frame_hashes import SIDE, differing_bits, hash_frames
from icve.synthetic.textures import background_canvas


def frames(name):
    picture = (background_canvas(name, SIDE, SIDE, 0) * 255).astype(np.uint8)
    return np.stack([picture, picture[::-1]])


def test_a_copy_differs_in_few_bits_and_another_picture_in_about_half():
    wall, water = frames("a stone wall"), frames("water")
    small = np.stack(
        [cv2.resize(cv2.resize(frame, (40, 40), interpolation=cv2.INTER_AREA), (SIDE, SIDE)) for frame in wall]
    )
    hashes, usable = hash_frames(wall)
    assert usable.all()
    assert differing_bits(hashes, hash_frames(small)[0]).max() <= 20
    assert differing_bits(hashes, hash_frames(255 - (255 - small) // 10 * 9)[0]).max() <= 20
    assert differing_bits(hashes, hash_frames(water)[0]).min() >= 40


def test_black_bars_change_little():
    wall = frames("a stone wall")
    barred = np.zeros_like(wall)
    for frame, out in zip(wall, barred, strict=True):
        out[16:-16] = cv2.resize(frame, (SIDE, SIDE - 32), interpolation=cv2.INTER_AREA)
    assert differing_bits(hash_frames(wall)[0], hash_frames(barred)[0]).max() <= 12


def test_frames_of_one_colour_are_not_told_by_a_hash():
    noise = np.random.default_rng(0).integers(0, 3, (2, SIDE, SIDE, 3), np.uint8)
    assert not hash_frames(noise)[1].any()
    assert not hash_frames(noise + np.uint8(120))[1].any()
