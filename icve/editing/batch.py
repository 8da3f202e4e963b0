"""Many edits at once: the model sees full batches while other threads decode what comes and encode what is done.

A *source* is decoded and encoded once, whatever number of instructions it has. Its items come one after the other,
window by window; windows of equal shape are batched across items and sources. An item's noise depends on its own seed
alone, so its result does not depend on its neighbours. Errors belong to items: one never stops another.

Latents of a source are kept on the host until its last item is done: 1/12 of its pixels' bytes at the model's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icve.data.media.video import VideoError
from icve.editing.decoding import Decoding
from icve.editing.editors import first_sentence
from icve.editing.items import Item
from icve.editing.jobs import Clip, Outcome, Progress, Settings
from icve.editing.processes import LostProcess
from icve.editing.writing import Entry, Writing

if TYPE_CHECKING:
    import torch

    from icve.editing.pipeline import EditPipeline

_TOKENS_PER_BATCH = 16_384
_MOST_PER_BATCH = 16


def batch_size_for(shape: tuple[int, int, int], settings: Settings, reference: bool = False) -> int:
    """Windows of a shape, with a reference picture or without, that are edited together: the setting, or what fits a
    budget of tokens."""
    if settings.batch_size is not None:
        return settings.batch_size
    tokens = 2 * settings.grid.tokens(*shape) + (settings.grid.tokens(*shape[:2], 1) if reference else 0)
    return max(1, min(_MOST_PER_BATCH, _TOKENS_PER_BATCH // tokens))


def edit_items(
    pipeline: EditPipeline,
    work: Sequence[tuple[Clip, Sequence[Item]]],
    settings: Settings,
    output: Callable[[Item], Path],
    progress: Progress | None = None,
    on_window: Callable[[], object] = lambda: None,
) -> Generator[Outcome, None, None]:
    """Edit the items of clips and yield what became of each as soon as it is known.

    Args:
        pipeline: the editor.
        work: clips with their items; clips of one shape should stand together, so that batches fill.
        settings: for all.
        output: file of an item; its side-by-side copy goes into the folder ``side_by_side`` beside it.
        progress: where seconds are counted.
        on_window: called for every edited window, for a progress bar.

    Raises:
        LostProcess: a process that shares the edits failed.
    """
    progress = progress or Progress()
    with Decoding(work, progress) as decoding, Writing(settings, output, progress) as writing:
        pending: list[_Job] = []
        kind: tuple | None = None  # what the pending ones have in common: a batch is of one shape
        for (clip, items), decoded in zip(work, decoding, strict=True):
            try:
                latents, seconds = _encode(pipeline, decoded, batch_size_for(clip.shape, settings), progress)
            except (VideoError, RuntimeError) as error:
                reason = error.reason if isinstance(error, VideoError) else first_sentence(error)
                yield from (Outcome(item, clip, f"It cannot be decoded: {reason}") for item in items)
                yield from writing.finished()
                continue
            for item in items:
                try:
                    given = _conditions(pipeline, item, clip)
                except (ValueError, RuntimeError) as error:
                    yield Outcome(item, clip, str(error) if isinstance(error, ValueError) else first_sentence(error))
                    continue
                # Those with and those without a reference apart: none sees what its neighbours have.
                if pending and kind != (clip.shape, item.reference is None):
                    _edit(pipeline, pending, settings, progress, writing, on_window)
                    pending = []
                kind = (clip.shape, item.reference is None)
                size = batch_size_for(clip.shape, settings, item.reference is not None)
                entry = writing.start(Outcome(item, clip, seconds=seconds / len(items)), clip)
                for latent, region in zip(latents, given.regions, strict=True):
                    pending.append(_Job(entry, latent, region, given.reference))
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

    entry: Entry
    latent: torch.Tensor
    region: torch.Tensor | None = None  # to change, bool (1, T, h, w)
    reference: torch.Tensor | None = None  # latents (C, 1, h, w)


@dataclass
class _Given:
    """What an item has beside its instruction: the region to change of each window, and latents of its reference."""

    regions: Sequence[torch.Tensor | None]
    reference: torch.Tensor | None = None


def _conditions(pipeline: EditPipeline, item: Item, clip: Clip) -> _Given:
    """Of an item. Raises ValueError where its mask or its reference cannot be used."""
    import torch

    from icve.editing.conditions import reference_of, regions_of

    given = _Given([None] * len(clip.spans))
    if item.mask is not None:
        given.regions = regions_of(item.mask, clip.spans, clip.padded, clip.info.displayed, clip.size, pipeline.grid)
    if item.reference is not None:
        with torch.inference_mode():
            given.reference = pipeline.encode_video(reference_of(item.reference, clip.size)[None]).cpu()[0]
    return given


def _together(jobs: Sequence[_Job]) -> dict[str, Any]:
    """Masks and references of a batch, as `EditPipeline.edit_latents` takes them."""
    import torch

    given = {}
    regions = [job.region for job in jobs]
    if (known := next((region for region in regions if region is not None), None)) is not None:
        # The whole picture is as no mask.
        whole = torch.ones_like(known)
        given["mask"] = torch.stack([whole if region is None else region for region in regions])
    if jobs[0].reference is not None:
        given["reference"] = torch.stack([job.reference for job in jobs if job.reference is not None])
    return given


def _encode(
    pipeline: EditPipeline, decoded: Iterable[tuple[np.ndarray, float]], size: int, progress: Progress
) -> tuple[list[torch.Tensor], float]:
    """Latents (C, T, h, w) of every window of a clip, and the seconds that decoding and encoding took."""
    import torch

    latents: list[torch.Tensor] = []
    batch: list[torch.Tensor] = []
    seconds = 0.0

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
    writing: Writing,
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
                torch.stack([job.latent for job in jobs]),
                [job.entry.outcome.item.instruction for job in jobs],
                generator=generators,
                **_together(jobs),
                **settings.sampling,
            )
            finite = edited.isfinite().flatten(1).all(1).tolist()
            video = pipeline.decode_latents(edited.nan_to_num(), "uint8").cpu()
    except LostProcess:
        raise
    except Exception as error:  # out of memory, most likely; whatever it is, it costs no other item
        if len(jobs) == 1:
            jobs[0].entry.outcome.error = f"The model failed at {jobs[0].entry.clip.shape}: {first_sentence(error)}"
            on_window()
            return
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
