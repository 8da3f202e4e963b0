"""The next micro-batch is encoded while the current one computes its gradients.

In the main thread, when the backward pass begins: the next batch's pixels are brought to the device, and what other
processes have loaded of it is sent (`gather_clips`). In a second thread, on a GPU in a stream of its own: codec and
text encoder make this process's part. In the main thread again, before the next micro-batch: the parts are joined
(`shared_encoding`). So the second thread sends nothing, and no group of processes is needed for it: whatever its pace,
all processes exchange in the same order. Nothing else runs beside it than the backward pass and the optimizer's step:
the batch ends when it has done its work, which on a GPU is only to queue it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from icve.data.edit_batch import EditBatch
from icve.data.share import sample_group
from icve.data.shared_loading import gather_clips
from icve.data.text_condition import TextCondition
from icve.runtime.transfers import to_device
from icve.training.lightning_types import editing

Parts = tuple[Callable[[], list[Tensor]], Callable[[], TextCondition]]  # they join what clips and texts became


class _Ahead:
    """What stands in a batch for its pixels while they are encoded.

    Attributes:
        videos: the pixels, kept until the device has read them.
        instructions: that are encoded with them.
        parts: what they become.
    """

    def __init__(self, videos: list[Tensor], instructions: list[str], parts: Future[Parts]) -> None:
        self.videos, self.instructions, self.parts = videos, instructions, parts


class EncodeAhead(Callback):
    """Encodes the next micro-batch beside the backward pass; losses and weights stay the same, bit for bit.

    It takes the memory of the codec's and the text encoder's work at the time when a step needs most, and saves time
    where training leaves the device, or on a CPU its cores, without work. Latents from a cache leave it nothing to do.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[Parts] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._ends_step = False  # the current micro-batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: EditBatch, batch_idx: int
    ) -> None:
        """Put latents and condition into the batch, if they were made ahead; raises what went wrong then."""
        self._ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        ahead = cast(dict, batch).pop("ahead", None)
        if ahead is None:
            return
        join_clips, join_texts = ahead.parts.result()
        with torch.no_grad():
            batch["source"], batch["target"] = join_clips()
            condition = join_texts()
        if self._stream is not None:  # which must not use their memory again too early
            for tensor in (batch["source"], batch["target"], condition.embeddings, *condition.extras.values()):
                if tensor.device.type == "cuda":
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
        # Which are dropped depends on the step, and which that would be was foretold.
        if ahead.instructions == self._instructions(pl_module, batch, trainer.global_step):
            batch["condition"] = condition

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Begin with the next batch, which Lightning has fetched to know whether there is one."""
        step = trainer.global_step + self._ends_step
        fetched = getattr(trainer.fit_loop._data_fetcher, "batches", [])
        if not fetched or step == trainer.max_steps:
            return
        batch: EditBatch
        batch, *numbers = fetched[0]
        clip = cast(dict, batch.get("shared", batch)).get("source")
        if clip is None or clip.dtype != torch.uint8 or not batch["id"]:
            return
        device, group = trainer.strategy.root_device, sample_group(trainer)
        whole: dict[str, Any]
        whole = {name: to_device(v, device) if isinstance(v, Tensor) else v for name, v in batch.items()}
        if group is not None:
            whole = gather_clips(whole, group, device)
        videos = [whole.pop("source"), whole.pop("target")]
        given = cast(EditBatch, whole)
        instructions = self._instructions(pl_module, given, step)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "encode ahead")
        if device.type == "cuda":
            # As any stream's, its work ranks no lower than that of the default stream, which the rest is in.
            self._stream = self._stream or torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._pending = self._thread.submit(self._encode, pl_module, given, videos, instructions)
        fetched[0] = ({**whole, "ahead": _Ahead(videos, instructions, self._pending)}, *numbers)

    def _encode(
        self, pl_module: LightningModule, batch: EditBatch, videos: list[Tensor], instructions: list[str]
    ) -> Parts:
        module = editing(pl_module)
        with torch.cuda.stream(self._stream):  # None changes nothing
            return module.encode_own_videos(*videos), module.encode_own_texts(batch, instructions)

    def _instructions(self, pl_module: LightningModule, batch: EditBatch, step: int) -> list[str]:
        module = editing(pl_module)
        draws = module.coming_draws(len(batch["id"]), batch.get("step_samples"), step)
        return list(module.objective.instructions(batch, draws))

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """What comes now may use the frozen parts too, or start processes: validation, previews, a fetched batch."""
        if self._pending is not None:
            wait([self._pending])  # its error belongs to the next batch
            self._pending = None
            if self._stream is not None:
                torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._pending = self._stream = None
