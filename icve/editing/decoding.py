"""Clips decoded into windows ahead of the model, in a thread of their own."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from icve.data.media.video import VideoError, iterate_frames
from icve.editing.editors import first_sentence
from icve.editing.items import Item
from icve.editing.jobs import Clip, Progress
from icve.runtime.storage.remote_path import RemoteError

_WINDOWS_AHEAD = 32  # decoded and not yet encoded


class Decoding:
    """Decodes clips in order in a thread, a bounded number of windows ahead."""

    def __init__(self, work: Sequence[tuple[Clip, Sequence[Item]]], progress: Progress) -> None:
        self._work, self._progress = work, progress
        self._queue: queue.Queue[Any] = queue.Queue(_WINDOWS_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="icve-decode", daemon=True)

    def __enter__(self) -> Decoding:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[Iterator[tuple[np.ndarray, float]]]:
        """For every clip an iterator over its windows (F, h, w, 3), F = 4k+1; it raises what decoding raised."""
        for _ in self._work:
            windows_of_clip = self._windows()
            yield windows_of_clip
            for _ in windows_of_clip:  # what was not taken after an error
                pass

    def _windows(self) -> Iterator[tuple[np.ndarray, float]]:
        while True:
            message = self._queue.get()
            if message is None:
                return
            if isinstance(message, BaseException):
                raise message
            yield message

    def _run(self) -> None:
        for clip, _ in self._work:
            end: BaseException | None = None
            try:
                for message in self._decode(clip):
                    self._put(message)
            except Exception as error:
                known = isinstance(error, VideoError | RemoteError)
                end = error if known else VideoError(clip.path, first_sentence(error))
            self._put(end)
            if self._stop.is_set():
                return

    def _decode(self, clip: Clip) -> Iterator[tuple[np.ndarray, float]]:
        started = time.perf_counter()
        held: deque[np.ndarray] = deque()  # frames from the next window's start on
        position, spans = clip.start, deque(clip.spans)
        first = clip.start
        for chunk in iterate_frames(clip.path, clip.start, clip.frames, clip.size):
            if self._stop.is_set():
                return
            held.extend(chunk)
            position += len(chunk)
            while spans and clip.start + sum(spans[0]) <= position:
                start, count = spans.popleft()
                while first < clip.start + start:
                    held.popleft()
                    first += 1
                window = [held[i] for i in range(count)]
                window += [window[-1]] * (clip.padded - count)
                stacked = np.stack(window)
                spent = time.perf_counter() - started
                self._progress.add("decode", spent)
                yield stacked, spent
                started = time.perf_counter()

    def _put(self, message: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(message, timeout=0.1)
            except queue.Full:
                continue
