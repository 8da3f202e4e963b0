"""What a folder of videos holds: which files are tried as videos, and why each of the others is not."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Suffixes that say video, to be tried whatever the file holds.
VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "264 265 3g2 3gp 3gpp amv apng asf av1 avi avs2 divx dv evo f4v flv gif gxf h264 h265 h266 hevc insv ivf lrv",
        "m1v m2p m2t m2ts m2v m4v mj2 mjpeg mjpg mk3d mkv mov mp2v mp4 mpe mpeg mpg mpv mts mxf nut obu ogm ogv ogx",
        "qt rm rmvb trp ts vc1 vob vro webm wmv wtv xvid y4m",
    )
    for name in names.split()
)
# Suffixes of sound and pictures, some of which begin as videos do.
_OTHER_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "aac ac3 aif aiff ape flac m4a m4b m4p mka mp2 mp3 oga opus wav weba wma",
        "avif bmp cr3 heic heif ico jpeg jpg png svg tif tiff webp",
    )
    for name in names.split()
)
_BEGINNINGS = (  # of files without a name that says so
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b"GIF87a",
    b"GIF89a",
    b"DKIF",
    b"YUV4MPEG2",
    b".RMF",
)
_NOT_MOVIES = (b"M4A ", b"M4B ", b"heic", b"heix", b"mif1", b"avif", b"crx ")  # brands of MP4's relatives


@dataclass(frozen=True)
class VideoFolder:
    """The files of a folder and its subfolders.

    Attributes:
        videos: what is tried as a video, as POSIX paths relative to the folder, in order. Links that lead nowhere and
            files that cannot be opened are among them where their names are those of videos: they fail when tried.
        left_out: every other file (of hidden folders: the folder), with the reason in a few words.
    """

    videos: list[str]
    left_out: dict[str, str]


def find_videos(folder: str | os.PathLike, exclude: str | os.PathLike | None = None) -> VideoFolder:
    """Look through a folder and all its subfolders, linked ones too.

    Args:
        folder: to look through.
        exclude: folder in it that is passed over, because results are written to it.
    """
    folder = Path(folder)
    videos: list[str] = []
    left_out: dict[str, str] = {}
    for file in _files(folder, None if exclude is None else Path(exclude).resolve(), left_out):
        name = file.relative_to(folder).as_posix()
        if reason := _reason_to_leave_out(file):
            left_out[name] = reason
        else:
            videos.append(name)
    return VideoFolder(sorted(videos), dict(sorted(left_out.items())))


def named_videos(names: Collection[str]) -> VideoFolder:
    """The same of relative names in a remote folder, of which only these are known: a suffix says what is a video."""
    left_out = {
        name: "hidden file" if any(part.startswith(".") for part in name.split("/")) else "no suffix of a video"
        for name in names
        if "/." in f"/{name}" or Path(name).suffix.lower() not in VIDEO_SUFFIXES
    }
    return VideoFolder([name for name in names if name not in left_out], left_out)


def is_video(file: str | os.PathLike) -> bool:
    """Whether a file is tried as a video: by its suffix or, where that is none that is known, by its first bytes."""
    return _reason_to_leave_out(Path(file)) is None


def broken_link(file: str | os.PathLike[str]) -> str | None:
    """Where a link points to that leads nowhere; None for everything else."""
    return os.readlink(file) if os.path.islink(file) and not os.path.exists(file) else None


def left_out_text(left_out: Mapping[str, str]) -> str:
    """How many files of a folder are no input and why, in one line with some of their names; "" for none."""
    names = defaultdict(list)
    for name, reason in left_out.items():
        names[reason].append(name)
    parts = [
        f"{reason}: {len(of)} ({', '.join(of[:3])}{', ...' if len(of) > 3 else ''})" for reason, of in names.items()
    ]
    count = len(left_out)
    return f"{count} {'file is' if count == 1 else 'files are'} left out. {'; '.join(parts)}" if parts else ""


def _files(folder: Path, exclude: Path | None, left_out: dict[str, str]) -> Iterator[Path]:
    """Everything in a folder that is no folder. Hidden folders and those that cannot be listed are left out."""

    def unlisted(error: OSError) -> None:
        left_out[Path(error.filename).relative_to(folder).as_posix()] = f"folder cannot be opened ({error.strerror})"

    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, onerror=unlisted, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = Path(place, name)
            real = os.path.realpath(path)
            if exclude is not None and Path(real) == exclude:
                continue
            if name.startswith("."):
                left_out[path.relative_to(folder).as_posix()] = "hidden folder"
            elif real in seen:  # a link to a folder that is looked through already, or around it
                left_out[path.relative_to(folder).as_posix()] = "link to a folder that is among the input"
            else:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (Path(place, name) for name in sorted(files))


def _reason_to_leave_out(file: Path) -> str | None:
    suffix = file.suffix.lower()
    if file.name.startswith("."):
        return "hidden file"
    if broken_link(file) is not None:
        return None if suffix in VIDEO_SUFFIXES else "broken link"
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            return "not a regular file"
        if suffix in VIDEO_SUFFIXES:
            return None
        if suffix in _OTHER_SUFFIXES:
            return "not a video"
        with file.open("rb") as stream:
            return None if _begins_as_video(stream.read(1024)) else "not a video"
    except OSError as error:
        return None if suffix in VIDEO_SUFFIXES else f"cannot be opened ({error.strerror})"


def _begins_as_video(head: bytes) -> bool:
    if head.startswith(_BEGINNINGS):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] not in _NOT_MOVIES
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return True  # QuickTime before it named itself
    if head.startswith(b"RIFF"):
        return head[8:12] in (b"AVI ", b"AVIX")
    if head.startswith(b"OggS"):
        return any(codec in head for codec in (b"\x80theora", b"OVP80", b"BBCD\x00"))
    # MPEG transport stream: a sync byte every 188 bytes, or 192 with the time stamps of Blu-ray and AVCHD before them
    return any(len(head) > at + 4 * step and set(head[at::step][:5]) == {0x47} for at, step in ((0, 188), (4, 192)))
