"""The frames of an edit and of what belongs to it: every file decoded once, side by side, a few frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from icve.data.masks import PICTURES, PackedMask, read_mask, white
from icve.data.media.png_frames import count_png_frames, iterate_png_frames
from icve.data.media.video import VideoError, iterate_frames, probe, resize_crop
from icve.evaluation.edits import Edit
from icve.evaluation.metrics.metric import TEXTS, ClipInfo

FRAMES_AT_ONCE = 16  # given to metrics, at most:
_PIXELS_AT_ONCE = 2**22
_NOTHING = np.empty(0, np.uint8)
_AS_STORED = "_as_stored"
_OF_ROW = {"source": "source", "target": "target", "mask": "mask", "target_alpha": "edit_alpha"}
_OF_RESULT = ("alpha", "layer", "composite")


class EditFrames:
    """An edit's files, opened.

    Args:
        edit: to be measured.
        needs: those of `icve.evaluation.metrics.metric.NEEDS` that are asked for.

    Attributes:
        info: of the edited video, with the edit's texts.
        absent: why one of ``needs`` is not there, by its name; "" where the edit simply has none.

    Raises:
        ValueError, OSError: there is no edited video, or it cannot be read.
    """

    def __init__(self, edit: Edit, needs: Collection[str]) -> None:
        if edit.edited is None:
            raise ValueError("There is no result.")
        edited = _video(edit.edited)
        known = {**edit.result, **edit.row, "instruction": edit.instruction}
        texts = {name: next((known[key] for key in keys if known.get(key)), None) for name, keys in TEXTS.items()}
        self.info = ClipInfo(edited.frames, edited.size, {name: str(text) for name, text in texts.items() if text})
        self.absent = {need: "" for need in needs if need in TEXTS and need not in self.info.texts}
        self._readers: dict[str, list[_Reader]] = {"edited": [edited]}  # by what they are of
        for need in dict.fromkeys(needs):
            if need not in TEXTS:
                self._open(edit, need)

    def chunks(self, needs: Collection[str]) -> Iterator[dict[str, Any]]:
        """Frames of those of ``needs`` that are not absent, by name: at most `FRAMES_AT_ONCE` of each at a time. The
        next ones are decoded in a thread meanwhile.

        Raises:
            ValueError, OSError: a file is damaged.
        """
        decoded = self._chunks(needs)
        with ThreadPoolExecutor(1, "decode") as thread:
            coming = thread.submit(next, decoded, None)
            while (chunk := coming.result()) is not None:
                coming = thread.submit(next, decoded, None)
                yield chunk

    def _chunks(self, needs: Collection[str]) -> Iterator[dict[str, Any]]:
        present = [need for need in needs if need not in TEXTS and need not in self.absent]
        used = {name: self._readers[name] for name in dict.fromkeys(map(_file_name, present))}
        largest = max((reader.size[0] * reader.size[1] for each in used.values() for reader in each), default=1)
        count = max(1, min(FRAMES_AT_ONCE, _PIXELS_AT_ONCE // largest))
        streams = {name: [even_chunks(reader.read(), count) for reader in each] for name, each in used.items()}
        for first in range(0, self.info.frames, count):
            stored = {name: [next(stream, _NOTHING) for stream in each] for name, each in streams.items()}
            for name, parts in stored.items():
                if any(len(part) != min(count, self.info.frames - first) for part in parts):
                    raise ValueError(f"Its {name} ends early: it was changed while it was read.")
            chunk: dict[str, Any] = {}
            for need in present:
                parts = stored[_file_name(need)]
                if not need.endswith(_AS_STORED):
                    parts = [_fitted(part, self.info.size) for part in parts]
                chunk[need] = parts if need == "distractors" else parts[0]
            yield chunk

    def _open(self, edit: Edit, need: str) -> None:
        name = _file_name(need)
        try:
            readers = self._readers.get(name) or _readers(edit, name, self.info.frames)
        except VideoError as error:
            self.absent[need] = f"Its {name.replace('_', ' ')}: {error.reason}"
        except (ValueError, OSError) as error:
            self.absent[need] = str(error)
        else:
            if not readers:
                self.absent[need] = ""
                return
            wrong = next((reader for reader in readers if reader.frames != self.info.frames), None)
            if wrong is not None:
                self.absent[need] = (
                    f"Its {name.removesuffix('s')} has {wrong.frames} frames, the edited video {self.info.frames}."
                )
                return
            self._readers[name] = readers


def _file_name(need: str) -> str:
    return need.removesuffix(_AS_STORED)


def even_chunks(chunks: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The same frames, ``count`` at a time; the last ones may be fewer."""
    held: list[np.ndarray] = []
    for chunk in chunks:
        held.append(chunk)
        while sum(map(len, held)) >= count:
            frames = held[0] if len(held) == 1 else np.concatenate(held)
            yield frames[:count]
            held = [frames[count:]] if len(frames) > count else []
    if held:
        yield held[0] if len(held) == 1 else np.concatenate(held)


class _Reader(NamedTuple):
    """Frames of a file: how many, their (height, width), and what decodes them from the first on."""

    frames: int
    size: tuple[int, int]
    read: Callable[[], Iterator[np.ndarray]]


def _readers(edit: Edit, name: str, frames: int) -> list[_Reader]:
    """What reads the frames of one name; nothing where the edit has no such file.

    Raises:
        ValueError, OSError: a file is not there or cannot be read.
    """
    if name == "distractors":
        return [_video(edit.file(path, name)) for path in edit.row.get("distractor_paths") or ()]
    if name in _OF_RESULT:
        path = edit.file_of_result(name)
        if path is None and name == "alpha" and edit.edited is not None and edit.edited.is_dir():
            return [_folder(edit.edited, 3)] if next(iterate_png_frames(edit.edited)).shape[2] == 4 else []
    else:
        column = _OF_ROW[name]
        named = edit.row.get(f"{column}_path")
        path = edit.file(named, name.replace("_", " ")) if named else None
    if path is None:
        return []
    if name == "mask":
        return [_mask(path, frames)]
    if name in _OF_RESULT:
        return [_grey(_video(path)) if name == "alpha" else _video(path)]
    reader = _video(path, edit.row.get(f"{column}_start") or 0, edit.row.get(f"{column}_frames"))
    return [_grey(reader) if name == "target_alpha" else reader]


def _video(path: Path, start: int = 0, count: int | None = None) -> _Reader:
    """Of a video, or of a folder of PNG frames. Raises VideoError."""
    if path.is_dir():
        return _folder(path, slice(3))
    info = probe(path)
    count = info.frames - start if count is None else count
    return _Reader(count, (info.height, info.width), lambda: iterate_frames(path, start, count))


def _folder(path: Path, channels: int | slice) -> _Reader:
    size = next(iterate_png_frames(path)).shape[:2]
    return _Reader(count_png_frames(path), size, lambda: (f[None, ..., channels] for f in iterate_png_frames(path)))


def _grey(reader: _Reader) -> _Reader:
    """A video of which the brightness counts, (n, H, W) uint8."""
    read = reader.read
    return reader._replace(read=lambda: (f.mean(-1, dtype=np.float32).round().astype(np.uint8) for f in read()))


def _mask(path: Path, frames: int) -> _Reader:
    """A mask of any kind: packed, a picture, or a video."""
    if path.suffix.lower() == ".npz":
        mask = PackedMask(path)
        count = mask.shape[0]
        spans = [(start, min(start + FRAMES_AT_ONCE, count)) for start in range(0, count, FRAMES_AT_ONCE)]
        return _Reader(count, (mask.shape[1], mask.shape[2]), lambda: (mask.frames(*span) for span in spans))
    if path.suffix.lower() in PICTURES:
        whole = read_mask(path, np.arange(frames))
        return _Reader(frames, whole.shape[1:], lambda: iter([whole]))
    video = _video(path)
    if video.frames < frames:
        raise VideoError(path, f"it masks {video.frames} frames, fewer than {frames}.")
    return _Reader(frames, video.size, lambda: (white(f) for f in iterate_frames(path, 0, frames)))


def _fitted(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scaled and cropped to a size as editing does; masks are white from half grey on."""
    if frames.shape[1:3] == size:
        return frames
    if frames.ndim == 4:
        return resize_crop(frames, size)
    levels = frames.view(np.uint8) * 255 if frames.dtype == bool else frames
    scaled = resize_crop(np.ascontiguousarray(levels)[..., None], size)[..., 0]
    return scaled >= 128 if frames.dtype == bool else scaled
