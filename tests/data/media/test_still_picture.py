import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from icve.data.media.still_picture import PictureWriter, is_picture, read_picture
from icve.data.media.video import VideoError, iterate_frames, probe, read_frames, timestamps

# Twelve pixels by eight: red above, blue below; the left half is darker.
COLOURS = np.zeros((8, 12, 3), np.uint8)
COLOURS[:4, :, 0], COLOURS[4:, :, 2] = 200, 200
COLOURS[:, :6] //= 2


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".JPEG"])
def test_a_picture_is_a_video_of_one_frame(tmp_path, suffix):
    options = (
        {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0} if suffix[1] in "jJ" else {}
    )
    path = save(tmp_path / f"a{suffix}", Image.fromarray(COLOURS), **options)
    info = probe(path)
    assert (info.width, info.height, info.frames) == (12, 8, 1)
    assert list(timestamps(path)) == [0.0]
    for frames in (
        read_frames(path),
        read_frames(path, [0, 0])[:1],
        read_frames(path, fps=24.0),
        *iterate_frames(path),
    ):
        assert frames.shape == (1, 8, 12, 3)
        assert np.abs(frames[0].astype(int) - COLOURS).max() <= (3 if options.get("quality") else 0)
    assert read_frames(path, [0], size=(4, 4)).shape == (1, 4, 4, 3)
    with pytest.raises(VideoError, match="has 1 frames, so there is no frame 1"):
        read_frames(path, [1])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a{suffix}", Image.fromarray(COLOURS), exif=exif, quality=100)
    turned = COLOURS
    if orientation in (2, 4, 5, 7):
        turned = turned[:, ::-1]
    turned = np.rot90(turned, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation])
    info = probe(path)
    assert (info.height, info.width) == turned.shape[:2]
    # The corners, which chroma subsampling leaves alone.
    found = read_picture(path).astype(int)
    assert np.abs(found - turned)[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 30


def test_grey_palette_one_bit_and_sixteen_bits(tmp_path):
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    grey = read_picture(save(tmp_path / "16.png", Image.fromarray(ramp)))
    assert np.array_equal(grey, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))
    grey = read_picture(save(tmp_path / "8.png", Image.fromarray((ramp // 257).astype(np.uint8))))
    assert np.array_equal(grey[..., 0].ravel(), np.arange(256))
    palette = Image.fromarray(COLOURS).quantize(16)
    assert np.abs(read_picture(save(tmp_path / "p.png", palette)).astype(int) - COLOURS).max() <= 4
    bits = read_picture(save(tmp_path / "1.png", Image.fromarray(COLOURS).convert("1")))
    assert set(np.unique(bits)) <= {0, 255}


def test_what_is_transparent_lies_on_white(tmp_path):
    alpha = np.full((8, 12, 1), 255, np.uint8)
    alpha[:, 6:] = 0
    alpha[0] = 51
    rgba = Image.fromarray(np.concatenate([COLOURS, alpha], axis=2))
    found = read_picture(save(tmp_path / "a.png", rgba))
    assert (found[1:, 6:] == 255).all()
    assert np.array_equal(found[1:, :6], COLOURS[1:, :6])
    assert found[0, 0].tolist() == [224, 204, 204]
    palette = Image.fromarray(COLOURS).quantize(4)
    found = read_picture(save(tmp_path / "p.png", palette, transparency=palette.getpixel((11, 7))))
    assert (found[5:, 7:] == 255).all()


def test_another_rgb_profile_is_brought_to_srgb(tmp_path):
    red = Image.new("RGB", (4, 4), (200, 30, 30))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read_picture(save(tmp_path / "s.png", red, icc_profile=srgb))[0, 0].tolist() == [200, 30, 30]
    assert read_picture(save(tmp_path / "broken.png", red, icc_profile=b"no profile"))[0, 0].tolist() == [200, 30, 30]
    # The same profile with red and blue exchanged, under another name.
    other = bytearray(srgb)
    for first, second in ((b"rXYZ", b"bXYZ"),):
        at = [128 + 4 + 12 * n for n in range(int.from_bytes(srgb[128:132], "big"))]
        places = {bytes(other[k : k + 4]): k for k in at}
        other[places[first] : places[first] + 4], other[places[second] : places[second] + 4] = second, first
    other = bytes(other).replace("sRGB".encode("utf-16-be"), "exch".encode("utf-16-be")).replace(b"sRGB b", b"exch b")
    found = read_picture(save(tmp_path / "x.png", red, icc_profile=other))[0, 0].tolist()
    assert found[2] > 150 > found[0]


def test_what_cannot_be_read_is_said(tmp_path):
    def reason(name, image=None, content=None, **options):
        path = tmp_path / name
        if image is not None:
            image.save(path, **options)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(VideoError) as error:
            read_frames(path)
        return error.value.reason

    assert "colours are CMYK: save it as RGB" in reason("c.jpg", Image.new("CMYK", (4, 4)))
    assert "no PNG, JPEG or WebP picture" in reason("t.png", content=b"text")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for kind in ("png", "jpeg", "webp"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        assert reason(f"cut.{kind}", content=buffer.getvalue()[:-600])
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert "it is an animation" in reason("a.webp", frames[0], save_all=True, append_images=frames[1:])
    assert reason("none.png").startswith("it cannot be opened")
    assert reason("empty.png", content=b"") == "it is empty."


def test_a_png_of_many_frames_is_a_video(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "red")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=100)
    assert not is_picture(tmp_path / "a.png")
    assert probe(tmp_path / "a.png").frames == 3


def test_a_picture_is_written_whole(tmp_path):
    with PictureWriter(tmp_path / "a" / "b.png") as writer:
        writer.write(COLOURS[None])
        with pytest.raises(ValueError, match="one frame"):
            writer.write(COLOURS[None])
    assert np.array_equal(read_picture(tmp_path / "a" / "b.png"), COLOURS)
    writer = PictureWriter(tmp_path / "c.png").__enter__()
    writer.write(COLOURS[None])
    writer.__exit__(RuntimeError, None, None)
    assert not (tmp_path / "c.png").exists()
