"""Many edits at once: the model sees full batches while other threads decode what comes and encode what is done.

A *source* is decoded and encoded once, whatever number of instructions it has. Its items come one after the other,
window by window; windows of equal shape are batched across items and sources. An item's noise depends on its own seed
alone, so its result does not depend on its neighbours. Errors belong to items: one never stops another.

Latents of a source are kept on the host until its last item is done: 1/12 of its pixels' bytes at the model's size.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icve.data.video import VideoError, VideoWriter, iterate_frames, resize_crop
from icve.data.video_index import VideoInfo, index_packets
from icve.editing.items import Item
from icve.editing.models import first_sentence
from icve.editing.windows import CrossFade, model_size, padded, windows

if TYPE_CHECKING:
    import torch

    from icve.pipeline import EditPipeline

_WINDOWS_AHEAD = 32  # decoded and not yet encoded
_WRITES_AHEAD = 64  # windows edited and not yet written
_TOKENS_PER_BATCH = 16_384
_MOST_PER_BATCH = 16
KINDS = ("decode", "encode", "model", "write")  # of work, for which seconds are counted


@dataclass(frozen=True)
class Clip:
    """What is edited of a file and how: known from its packets, before anything is decoded."""

    path: Path
    info: VideoInfo
    start: int
    frames: int
    size: tuple[int, int]  # (height, width) at which it is edited
    spans: list[tuple[int, int]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, frames) that the model sees; windows of one shape can be batched."""
        return (*self.size, padded(self.spans[0][1]))


@dataclass(frozen=True)
class Settings:
    """How everything is edited. Sampling arguments are those of ``EditPipeline.edit_latents``.

    ``size``: "source" for the source's displayed size, "model" for the size it is edited at. ``window``: frames per
    window. ``side_by_side``: also write source and result in one picture.
    """

    sampling: dict[str, Any]
    window: int
    budget: int
    size: str = "source"
    side_by_side: bool = False
    crf: int = 16
    batch_size: int | None = None


@dataclass
class Outcome:
    """What became of an item: ``error`` is None when its file is in place."""

    item: Item
    clip: Clip | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass
class Progress:
    """Seconds of work by kind, over all threads, and windows done."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float) -> None:
        with self._lock:
            self.seconds[kind] += seconds


def clip_of(item: Item, settings: Settings) -> Clip:
    """Look at an item's file and decide on its size and windows.

    Raises:
        VideoError: the file cannot be read, or has not the frames asked for.
    """
    info = index_packets(item.source).info
    frames = info.frames - item.start if item.count is None else item.count
    if frames < 1 or item.start + frames > info.frames:
        raise VideoError(item.source, f"it has {info.frames} frames, not the frames from {item.start} on asked for.")
    size = model_size(*info.displayed, settings.budget)
    return Clip(item.source, info, item.start, frames, size, windows(frames, settings.window))


def batch_size_for(shape: tuple[int, int, int], settings: Settings) -> int:
    """Windows of a shape that are edited together: the setting, or what fits a budget of tokens."""
    if settings.batch_size is not None:
        return settings.batch_size
    height, width, frames = shape
    tokens = 2 * (height // 16) * (width // 16) * ((frames + 3) // 4)
    return max(1, min(_MOST_PER_BATCH, _TOKENS_PER_BATCH // tokens))


def edit_items(
    pipeline: EditPipeline,
    work: Sequence[tuple[Clip, Sequence[Item]]],
    settings: Settings,
    output: Callable[[Item], Path],
    progress: Progress | None = None,
    on_window: Callable[[], object] = lambda: None,
) -> Iterator[Outcome]:
    """Edit the items of clips and yield what became of each as soon as it is known.

    Args:
        pipeline: the editor.
        work: clips with their items; clips of one shape should stand together, so that batches fill.
        settings: for all.
        output: file of an item; its side-by-side copy goes into the folder ``side_by_side`` beside it.
        progress: where seconds are counted.
        on_window: called for every edited window, for a progress bar.
    """
    progress = progress or Progress()
    with _Decoding(work, progress) as decoding, _Writing(settings, output, progress) as writing:
        pending: list[_Job] = []
        for (clip, items), decoded in zip(work, decoding, strict=True):
            if pending and pending[0].clip.shape != clip.shape:
                _edit(pipeline, pending, settings, progress, writing, on_window)
                pending = []
            size = batch_size_for(clip.shape, settings)
            try:
                latents, seconds = _encode(pipeline, decoded, size, progress)
            except (VideoError, RuntimeError) as error:
                reason = error.reason if isinstance(error, VideoError) else first_sentence(error)
                yield from (Outcome(item, clip, f"It cannot be decoded: {reason}") for item in items)
                yield from writing.finished()
                continue
            for item in items:
                entry = writing.begin(Outcome(item, clip, seconds=seconds / len(items)))
                for number, latent in enumerate(latents):
                    pending.append(_Job(clip, entry, number, latent))
                    if len(pending) == size:
                        _edit(pipeline, pending, settings, progress, writing, on_window)
                        pending = []
                        yield from writing.finished()
        if pending:
            _edit(pipeline, pending, settings, progress, writing, on_window)
        yield from writing.finished(wait=True)


@dataclass
class _Job:
    """A window of an item, waiting for the model."""

    clip: Clip
    entry: _Entry
    number: int
    latent: torch.Tensor


def _encode(
    pipeline: EditPipeline, decoded: Iterable[np.ndarray], size: int, progress: Progress
) -> tuple[list[torch.Tensor], float]:
    """Latents (C, T, h, w) of every window of a clip, and the seconds that decoding and encoding took."""
    import torch

    latents: list[torch.Tensor] = []
    seconds, batch = 0.0, []

    def flush() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            latents.extend(pipeline.encode_video(torch.stack(batch)).cpu())
        progress.add("encode", spent := time.perf_counter() - started)
        batch.clear()
        return spent

    for window, spent in decoded:
        seconds += spent
        batch.append(torch.from_numpy(np.ascontiguousarray(window.transpose(3, 0, 1, 2))))
        if len(batch) == size:
            seconds += flush()
    if batch:
        seconds += flush()
    return latents, seconds


def _edit(
    pipeline: EditPipeline,
    jobs: list[_Job],
    settings: Settings,
    progress: Progress,
    writing: _Writing,
    on_window: Callable[[], object],
) -> None:
    """Run a batch through the model and hand its windows to the writers. A batch that fails, for want of memory
    say, is halved."""
    import torch

    jobs = [job for job in jobs if job.entry.outcome.error is None]
    if not jobs:
        return
    started = time.perf_counter()
    try:
        # Every window of an item starts from the same noise: what they show then differs least.
        generators = [torch.Generator().manual_seed(job.entry.outcome.item.seed) for job in jobs]
        with torch.inference_mode():
            edited = pipeline.edit_latents(
                torch.stack([job.latent for job in jobs]).to(pipeline._execution_device),
                [job.entry.outcome.item.instruction for job in jobs],
                generator=generators,
                **settings.sampling,
            )
            finite = edited.isfinite().flatten(1).all(1).tolist()
            video = pipeline.decode_latents(edited.nan_to_num(), "uint8").cpu()
    except Exception as error:  # out of memory, most likely; whatever it is, it costs no other item
        if len(jobs) == 1:
            jobs[0].entry.outcome.error = f"The model failed at {jobs[0].clip.shape}: {first_sentence(error)}"
            return on_window()
        for half in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
            _edit(pipeline, half, settings, progress, writing, on_window)
        return
    seconds = time.perf_counter() - started
    progress.add("model", seconds)
    frames = video.permute(0, 2, 3, 4, 1).contiguous().numpy()
    for job, clip, good in zip(jobs, frames, finite, strict=True):
        if good:
            job.entry.outcome.seconds += seconds / len(jobs)
            writing.add(job.entry, clip)
        else:
            job.entry.outcome.error = "The model's result is not finite: try another seed or fewer guided steps."
        on_window()


class _Decoding:
    """Decodes clips in order in a thread, a bounded number of windows ahead."""

    def __init__(self, work: Sequence[tuple[Clip, Sequence[Item]]], progress: Progress) -> None:
        self._work, self._progress = work, progress
        self._queue: queue.Queue[Any] = queue.Queue(_WINDOWS_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="icve-decode", daemon=True)

    def __enter__(self) -> _Decoding:
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
                end = error if isinstance(error, VideoError) else VideoError(clip.path, first_sentence(error))
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
                window += [window[-1]] * (padded(count) - count)
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


class _Entry:
    """An item on its way into its file; its methods run in one writer thread, in the order of its windows."""

    def __init__(self, outcome: Outcome, settings: Settings, path: Path, progress: Progress) -> None:
        self.outcome, self.settings, self.path, self.progress = outcome, settings, path, progress
        self.windows_left = len(outcome.clip.spans)
        self.last: Future | None = None
        self._fade = CrossFade(outcome.clip.spans)
        self._position = 0
        self._writers: list[VideoWriter] = []
        self._beside: Iterator[np.ndarray] | None = None

    def write(self, window: np.ndarray) -> None:
        """Append a window; on any error the item fails and its unfinished files disappear."""
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
            reason = getattr(error, "strerror", None) or first_sentence(error)
            self.outcome.error = f"{self.path} cannot be written: {reason.rstrip('.')}."
            self.abandon()
        finally:
            spent = time.perf_counter() - started
            self.outcome.seconds += spent
            self.progress.add("write", spent)

    def abandon(self) -> None:
        """Leave nothing of an unfinished file."""
        for writer in self._writers:
            writer.__exit__(RuntimeError, None, None)
        self._writers = []

    def _open(self) -> None:
        clip, index = self.outcome.clip, index_packets(self.outcome.clip.path)
        self._size, aspect = clip.info.displayed, Fraction(1)
        if self.settings.size == "model":
            self._size = clip.size
            height, width = clip.info.displayed
            aspect = Fraction(width, height) / Fraction(clip.size[1], clip.size[0])
        whole = clip.frames == clip.info.frames
        self._times, time_base, rate = None, None, clip.info.fps
        origin, end = 0.0, None
        if index.pts is not None:
            pts = index.pts[clip.start : clip.start + clip.frames]
            # A whole file keeps its picture's place beside its sound; a part of one begins at 0.
            first = index.origin if whole else int(pts[0])
            self._times, time_base, origin = pts - first, index.time_base, float(int(first) * index.time_base)
            after = clip.start + clip.frames
            end = None if after == clip.info.frames else float(int(index.pts[after]) * index.time_base)
        for stale in self.path.parent.glob(f".{self.path.name}.*.tmp"):  # of a run that was killed
            if not _alive(stale):
                stale.unlink(missing_ok=True)
        paths = [(self.path, aspect)]
        if self.settings.side_by_side:
            paths.append((self.path.parent / "side_by_side" / self.path.name, aspect))
            self._beside = _frames(iterate_frames(clip.path, clip.start, clip.frames, self._size))
        for path, sample_aspect in paths:
            writer = VideoWriter(
                path, rate, time_base, self.settings.crf, "veryfast", sample_aspect, clip.path, (origin, end)
            )
            self._writers.append(writer.__enter__())

    def _append(self, frames: np.ndarray) -> None:
        clip = self.outcome.clip
        for start in range(0, len(frames), 8):  # few frames at the source's size at a time
            part = resize_crop(frames[start : start + 8], self._size, shape=self._size)
            times = None if self._times is None else self._times[self._position : self._position + len(part)]
            self._position += len(part)
            self._writers[0].write(part, times)
            if self._beside is not None:
                sources = np.stack([next(self._beside) for _ in range(len(part))])
                self._writers[1].write(np.concatenate([sources, part], axis=2), times)
        if self._position > clip.frames:
            raise RuntimeError("More frames came out than went in.")

    def _close(self) -> None:
        writers, self._writers = self._writers, []
        # The side-by-side copy first: where the result is in place, everything is.
        for writer in reversed(writers):
            writer.__exit__(None, None, None)


def _frames(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield from chunk


def _alive(temporary: Path) -> bool:
    """Whether the process that a temporary file is named after still runs on this machine."""
    try:
        os.kill(int(temporary.name.split(".")[-2]), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class _Writing:
    """Writer threads; an item stays with one of them, so that its windows are written in order."""

    def __init__(self, settings: Settings, output: Callable[[Item], Path], progress: Progress) -> None:
        self._settings, self._output, self._progress = settings, output, progress
        threads = max(1, min(4, (os.cpu_count() or 2) // 2))
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="icve-write") for _ in range(threads)]
        self._room = threading.BoundedSemaphore(_WRITES_AHEAD)
        self._entries: list[_Entry] = []
        self._begun = 0

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)
        for entry in self._entries:
            entry.abandon()

    def begin(self, outcome: Outcome) -> _Entry:
        entry = _Entry(outcome, self._settings, self._output(outcome.item), self._progress)
        entry.thread = self._threads[self._begun % len(self._threads)]
        self._begun += 1
        self._entries.append(entry)
        return entry

    def add(self, entry: _Entry, frames: np.ndarray) -> None:
        self._room.acquire()

        def write() -> None:
            try:
                entry.write(frames)
            finally:
                self._room.release()

        entry.last = entry.thread.submit(write)

    def finished(self, wait: bool = False) -> Iterator[Outcome]:
        """Outcomes of the items that are done, in the order they were begun."""
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
