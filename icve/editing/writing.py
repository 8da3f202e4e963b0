"""Edited windows cross-faded and encoded into files behind the model, in threads of their own."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np

from icve.data.media.prepared_sound import PreparedSound
from icve.data.media.still_picture import PictureWriter
from icve.data.media.video import VideoWriter, iterate_frames, resize_crop
from icve.data.media.video_formats import FORMATS
from icve.data.media.video_index import STILL, VideoInfo, index_packets
from icve.editing.editors import first_sentence
from icve.editing.items import Item, result_name
from icve.editing.jobs import Clip, Outcome, Progress, Settings
from icve.editing.windows import CrossFade
from icve.runtime.atomic import remove_abandoned, temporary_name

_WRITES_AHEAD = 64  # windows edited and not yet written


class Entry:
    """An item on its way into its file; its methods run in one writer thread, in the order of its windows."""

    thread: ThreadPoolExecutor  # of `Writing`, which sets it

    def __init__(self, outcome: Outcome, clip: Clip, settings: Settings, path: Path, progress: Progress) -> None:
        self.outcome, self.clip, self.settings, self.path, self.progress = outcome, clip, settings, path, progress
        self.windows_left = len(clip.spans)
        self.last: Future | None = None
        self._fade = CrossFade(clip.spans)
        self._position = 0
        self._writers: list[VideoWriter | PictureWriter] = []
        self._beside: Iterator[np.ndarray] | None = None
        self._sound: PreparedSound | None = None
        try:
            self._start_sound()
        except Exception as error:  # the source is another one by now, or gone
            self._fail(error)

    def write(self, window: np.ndarray) -> None:
        """Append a window (F, H, W, 3), or with alpha (F, H, W, 4), uint8; on any error the item fails and its
        unfinished files disappear."""
        if self.outcome.error is not None:
            return
        started = time.perf_counter()
        try:
            if not self._writers:
                self._open()
            self._append(self._fade.add(window))
            self.windows_left -= 1
            if not self.windows_left:
                self._close()
        except Exception as error:
            self._fail(error)
        finally:
            spent = time.perf_counter() - started
            self.outcome.seconds += spent
            self.progress.add("write", spent)

    def abandon(self) -> None:
        """Leave nothing of an unfinished file."""
        while self._writers:
            self._writers.pop().__exit__(RuntimeError, None, None)
        if self._sound is not None:
            self._sound.close()

    def _fail(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or first_sentence(error)
        self.outcome.error = f"{self.path} cannot be written: {reason.rstrip('.')}."
        self.abandon()

    def _start_sound(self) -> None:
        """Look up the clip's times, and let its sound be made ready beside the model's work."""
        clip, index = self.clip, index_packets(self.clip.path)
        whole = clip.frames == clip.info.frames
        self._times, self._time_base = None, None
        if clip.info.codec == STILL:
            return
        origin, end = 0.0, None
        if index.pts is not None:
            pts = index.pts[clip.start : clip.start + clip.frames]
            # A whole file keeps its picture's place beside its sound; a part of one begins at 0.
            first = index.origin if whole else int(pts[0])
            self._times, self._time_base = pts - first, index.time_base
            origin = float(int(first) * index.time_base)
            after = clip.start + clip.frames
            end = None if after == clip.info.frames else float(int(index.pts[after]) * index.time_base)
        kind = FORMATS[self.settings.format].sound or ("mp4" if self.settings.side_by_side else None)
        self._sound = PreparedSound(clip.path, temporary_name(self.path), origin, end, kind)

    def _open(self) -> None:
        clip = self.clip
        self._size, aspect = clip.info.displayed, Fraction(1)
        if self.settings.size == "model":
            self._size = clip.size
            height, width = clip.info.displayed
            aspect = Fraction(width, height) / Fraction(clip.size[1], clip.size[0])
        paths = [(self.path, self.settings.format)]
        if self.settings.side_by_side:
            paths.append((self.path.parent / "side_by_side" / result_name(self.outcome.item, ".mp4"), "mp4"))
            self._beside = itertools.chain.from_iterable(iterate_frames(clip.path, clip.start, clip.frames, self._size))
        for path, kind in paths:
            remove_abandoned(path)
            options = (self._time_base, self.settings.crf, "veryfast", aspect, self._sound, kind)
            still = clip.info.codec == STILL
            writer = PictureWriter(path) if still else VideoWriter(path, clip.info.fps, *options)
            self._writers.append(writer.__enter__())

    def _append(self, frames: np.ndarray) -> None:
        clip = self.clip
        for start in range(0, len(frames), 8):  # few frames at the source's size at a time
            part = resize_crop(frames[start : start + 8], self._size, shape=self._size)
            times = None if self._times is None else self._times[self._position : self._position + len(part)]
            self._position += len(part)
            self._writers[0].write(part, times)
            if self._beside is not None:
                sources = np.stack([next(self._beside) for _ in range(len(part))])
                self._writers[1].write(np.concatenate([sources, _over_black(part)], axis=2), times)
        if self._position > clip.frames:
            raise RuntimeError("More frames came out than went in.")

    def _close(self) -> None:
        result = self._writers[0]
        # The side-by-side copy first: where the result is in place, everything is.
        while self._writers:
            self._writers.pop().__exit__(None, None, None)
        if self._sound is not None:
            self._sound.close()
        self.outcome.note = " ".join([*_differences(self.clip.info), *result.notes]) or None


def _over_black(frames: np.ndarray) -> np.ndarray:
    """Frames (F, H, W, 3 or 4) uint8 without alpha, (F, H, W, 3): what is transparent is black."""
    if frames.shape[-1] == 3:
        return frames
    return (frames[..., :3].astype(np.uint16) * frames[..., 3:] // 255).astype(np.uint8)


def _differences(info: VideoInfo) -> Iterator[str]:
    """Sentences on how a result differs from its source by more than the edit."""
    if info.dynamic_range != "SDR":
        yield f"The source is {info.dynamic_range}, the result SDR."
    if info.interlaced:
        yield "The source is interlaced, the result progressive."


class Writing:
    """Writer threads; an item stays with one of them, so that its windows are written in order."""

    def __init__(self, settings: Settings, output: Callable[[Item], Path], progress: Progress) -> None:
        self._settings, self._output, self._progress = settings, output, progress
        threads = max(1, min(4, (os.cpu_count() or 2) // 2))
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="icve-write") for _ in range(threads)]
        self._next_thread = itertools.cycle(self._threads)
        self._room = threading.BoundedSemaphore(_WRITES_AHEAD)
        self._entries: list[Entry] = []

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)
        for entry in self._entries:
            entry.abandon()

    def start(self, outcome: Outcome, clip: Clip) -> Entry:
        entry = Entry(outcome, clip, self._settings, self._output(outcome.item), self._progress)
        entry.thread = next(self._next_thread)
        self._entries.append(entry)
        return entry

    def add(self, entry: Entry, frames: np.ndarray) -> None:
        self._room.acquire()

        def write() -> None:
            try:
                entry.write(frames)
            finally:
                self._room.release()

        entry.last = entry.thread.submit(write)

    def finished(self, wait: bool = False) -> Iterator[Outcome]:
        """Outcomes of the items that are done, in the order they were started."""
        left = []
        for entry in self._entries:
            if wait and entry.last is not None:
                entry.last.result()
            settled = entry.last is None or entry.last.done()
            if settled and (entry.windows_left == 0 or entry.outcome.error is not None):
                if entry.outcome.error is not None:
                    entry.abandon()
                yield entry.outcome
            else:
                left.append(entry)
        self._entries = left
