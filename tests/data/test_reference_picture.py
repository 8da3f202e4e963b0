import cv2
import numpy as np
import pytest
from PIL import Image

from icve.data.media.still_picture import read_picture
from icve.data.media.video import VideoError
from icve.data.reference_picture import GREY, letterbox, read_reference


def test_transparent_parts_lie_over_grey_and_turned_pictures_are_upright(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[0, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "half.png")
    (picture,) = read_reference(tmp_path / "half.png", (2, 3))
    assert (picture[0] == (255, 0, 0)).all()
    assert (picture[1] == GREY).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert (read_reference(tmp_path / "turned.jpg", (8, 4)) == 0).all()  # no grey beside it


def test_nothing_is_cut_off(tmp_path):
    wide = np.full((10, 40, 3), 255, np.uint8)
    fitted = letterbox(wide, (32, 32))
    assert (fitted[12:20] == 255).all()
    assert (fitted[:12] == GREY).all()
    assert (fitted[20:] == GREY).all()
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    assert read_reference(tmp_path / "wide.png", (16, 48)).shape == (1, 16, 48, 3)


def test_a_reference_fills_the_picture_wherever_it_lay_in_its_transparent_margin(tmp_path):
    rgba = np.zeros((30, 40, 4), np.uint8)
    rgba[5:13, 20:28] = (250, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "small.png")
    assert (read_reference(tmp_path / "small.png", (16, 16)) == (250, 0, 0)).all()
    assert read_picture(tmp_path / "small.png").shape == (30, 40, 3)  # a mask is not moved
    Image.fromarray(np.zeros_like(rgba)).save(tmp_path / "nothing.png")
    assert (read_reference(tmp_path / "nothing.png", (16, 16)) == GREY).all()


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"none\.png: there is no such picture"):
        read_reference(tmp_path / "none.png", (8, 8))
    (tmp_path / "text.png").write_text("words")
    with pytest.raises(VideoError, match=r"text\.png: it is no PNG"):
        read_reference(tmp_path / "text.png", (8, 8))
