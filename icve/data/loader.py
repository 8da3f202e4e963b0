"""The loader of pairs, and its worker processes: they end with the process that reads from them, and not before."""

import atexit
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from icve.data.buckets import Draw, StepSampler
from icve.data.share import SampleGroup
from icve.data.shared_loading import OwnDraws, complete


class PairLoader(DataLoader):
    """A DataLoader of pairs that reports what its workers dropped, and goes on where it was when iterated again.

    Args:
        dataset: of pairs.
        batches: which of them make a batch.
        report: called with the (id, reason) of those that were dropped.
        group: processes that have the same batches and load a part of each; None loads them alone.
        **kwargs: of the DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: StepSampler | list[list[Draw]],
        *,
        report: Callable[[list[tuple[str, str]]], None],
        group: SampleGroup | None = None,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        own: Any = batches
        if group is not None:
            own = OwnDraws(batches, group, num_workers)
            if num_workers:  # as many samples as it would load alone: most of the batches are not its
                kwargs["prefetch_factor"] = 2 * group.size
        start = leave_signals_to_the_reader
        super().__init__(dataset, batch_sampler=own, num_workers=num_workers, worker_init_fn=start, **kwargs)
        end_workers_at_exit()
        self.batches, self.report, self.group = batches, report, group

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # PyTorch promises its private class
        loaded: Iterator[dict[str, Any]] = super().__iter__()
        sampler = self.batches if isinstance(self.batches, StepSampler) else None
        if self.group is not None:
            loaded = complete(loaded, self.group, 0 if sampler is None else sampler.start_batch, self.num_workers)
        for batch in loaded:
            if sampler is not None:
                batch["weight"] = sampler.weight(sampler.start_batch)
                batch["step_samples"] = sampler.samples(sampler.start_batch)
                batch.pop("counted", None)
                # Workers prefetch batches. The next iteration must begin after the last batch that was delivered.
                sampler.start_batch += 1
            self.report(batch.pop("dropped"))
            yield batch


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of :class:`PairDataset` → one batch; ``dropped`` is the concatenation of theirs."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        batch[name] = torch.stack(values) if isinstance(first, torch.Tensor) else values
    batch["dropped"] = [entry for dropped in batch["dropped"] for entry in dropped]
    return batch


def collate_any(
    samples: Sequence[dict[str, Any]], collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
) -> dict[str, Any]:
    """Samples → one batch, also where there are none: an empty micro-batch."""
    return collate(samples) if samples else {"instruction": [], "id": [], "dropped": []}


def leave_signals_to_the_reader(worker: int) -> None:
    """Initialise a worker: what is sent to all processes of a job asks the reader to stop, who still needs batches."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@functools.cache
def end_workers_at_exit() -> None:
    """See to it that a worker that hangs does not keep this process from ending: it would wait for it for ever."""
    atexit.register(_end_workers)  # after multiprocessing's own, and therefore called before that waits


def _end_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would take this for an accident
    for child in multiprocessing.active_children():
        child.kill()
