"""The kinds of files that edited pictures are written to, and which of them hold alpha."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_QUALITY = "{crf}"


@dataclass(frozen=True)
class VideoFormat:
    """How FFmpeg is asked for a kind of file.

    Attributes:
        title: as errors and notes call it.
        suffix: of the file's name.
        container: FFmpeg's name of it; "image2" writes a folder with a file per frame.
        codec: FFmpeg's encoder.
        pixels: the encoder's pixel format for frames without alpha.
        alpha_pixels: the one for frames with alpha, None where the format holds none.
        sound: the kind of sound it holds, a key of :data:`icve.data.media.sound.KINDS`; None for none.
        pixel_aspect: whether it says that pixels are not square.
        encoder_options: ``{crf}`` and ``{preset}`` stand for the writer's.
        container_options: as FFmpeg names them.
    """

    title: str
    suffix: str
    container: str
    codec: str
    pixels: str
    alpha_pixels: str | None
    sound: str | None
    pixel_aspect: bool
    encoder_options: Mapping[str, str]
    container_options: Mapping[str, str]

    @property
    def is_folder(self) -> bool:
        return self.container == "image2"


# One thread everywhere, because callers parallelise over files.
FORMATS: Mapping[str, VideoFormat] = {
    # Without look-ahead rate control, because with it the same frames did not always give the same bytes.
    "mp4": VideoFormat(
        *("MP4", ".mp4", "mp4", "libx264", "yuv420p", None, "mp4", True),
        encoder_options={
            "crf": _QUALITY,
            "preset": "{preset}",
            "threads": "1",
            "x264-params": "mbtree=0:weightp=0",
        },
        container_options={"movflags": "+faststart"},
    ),
    "prores4444": VideoFormat(
        *("ProRes 4444", ".mov", "mov", "prores_ks", "yuv444p10le", "yuva444p10le", "mov", True),
        encoder_options={"profile": "4444", "vendor": "apl0", "threads": "1"},
        container_options={"movflags": "+faststart"},
    ),
    # A bit rate of 0 leaves the quality to crf. libvpx has no alternate reference frames where there is alpha. Without
    # "bitexact", WebM files are numbered at random.
    "vp9": VideoFormat(
        *("WebM", ".webm", "webm", "libvpx-vp9", "yuv420p", "yuva420p", "webm", False),
        encoder_options={
            "crf": _QUALITY,
            "b": "0",
            "deadline": "good",
            "cpu-used": "4",
            "auto-alt-ref": "0",
            "threads": "1",
        },
        container_options={"fflags": "+bitexact"},
    ),
    # The fastest compression makes files that are 7 % larger than the next one's, in half the time.
    "png": VideoFormat(
        *("PNG", ".frames", "image2", "png", "rgb24", "rgba", None, True),
        encoder_options={"pred": "paeth", "compression_level": "1", "threads": "1"},
        container_options={"start_number": "0"},
    ),
}


def format_named(name: str) -> VideoFormat:
    """An entry of :data:`FORMATS`. Raises ValueError where there is none of this name."""
    if name not in FORMATS:
        raise ValueError(f"There is no video format {name!r}: choose one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def formats_with_alpha() -> list[str]:
    """Names of the formats that hold alpha."""
    return [name for name, kind in FORMATS.items() if kind.alpha_pixels is not None]
