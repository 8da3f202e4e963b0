"""Several processes that edit together, started by `torchrun`: a group shares every edit, groups share the list.

The first process of a group leads. It decodes, encodes, batches, writes and records as a process alone does; what the
transformer has to sample it sends to the others, which do nothing else. So nothing is decided twice, a file that cannot
be read concerns nobody else, and every result has one writer.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from icve.editing.editors import first_sentence

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icve.editing.pipeline import EditPipeline

_MEETING = _EXCHANGE = timedelta(minutes=10)  # to start, and to answer in the middle of a step
# Followers wait while a leader decodes a film, and groups for the slowest one: only a process that ends cuts it short.
_WAITING = timedelta(days=30)


class LostProcess(RuntimeError):
    """Processes that share an edit cannot go on, because one of them failed. The message is for the user."""


@dataclass(frozen=True)
class Processes:
    """This process among those that edit together; by default it is alone.

    Attributes:
        rank, world: number of this process, and how many there are.
        size: how many share an edit; ranks that share one are neighbours.
        device: this process's own, None for the default.
        waiting, everybody: gloo groups of those that share an edit and of all, for words and for what is sampled.
    """

    rank: int = 0
    world: int = 1
    size: int = 1
    device: str | None = None
    waiting: ProcessGroup | None = None
    everybody: ProcessGroup | None = None

    @property
    def group(self) -> int:
        return self.rank // self.size

    @property
    def groups(self) -> int:
        return self.world // self.size

    @property
    def leads(self) -> bool:
        return self.rank % self.size == 0

    def check(self, pipeline: EditPipeline) -> None:
        """Raises ValueError where the heads of the transformer cannot be shared evenly."""
        heads = pipeline.transformer.config.num_attention_heads
        if heads % self.size:
            fitting = [size for size in range(1, self.world + 1) if heads % size == self.world % size == 0]
            raise ValueError(
                f"The transformer's {heads} attention heads cannot be shared by {self.size} processes: choose a "
                f"--sequence_parallel_size that divides them, here {' or '.join(map(str, fitting))}."
            )

    @contextlib.contextmanager
    def leading(self, pipeline: EditPipeline) -> Iterator[None]:
        """While it lasts, the group samples what this process's pipeline samples; then the others end.

        Raises:
            LostProcess: sampling failed here or elsewhere; an exchange that began cannot be taken back.
        """
        if self.size == 1:
            yield
            return
        sample = pipeline.sample

        def sample_together(**arguments: Any) -> Any:
            with self._lost_if_it_fails():
                self._send(arguments)
                return sample(**arguments)

        vars(pipeline)["sample"] = sample_together  # before the class's own
        try:
            yield
        finally:
            del vars(pipeline)["sample"]
        with self._lost_if_it_fails():
            self._send(None)

    def follow(self, pipeline: EditPipeline) -> None:
        """Sample what the leader sends until it has no more.

        Raises:
            LostProcess: sampling failed here or elsewhere.
        """
        import torch

        with self._lost_if_it_fails(), torch.inference_mode():
            while (arguments := self._receive()) is not None:
                pipeline.sample(**arguments)

    def _send(self, arguments: dict[str, Any] | None) -> None:
        import torch
        import torch.distributed as dist

        torch.save(arguments, written := io.BytesIO())
        dist.broadcast_object_list([written.getvalue()], group=self.waiting, group_src=0)

    def _receive(self) -> dict[str, Any] | None:
        import torch
        import torch.distributed as dist

        from icve.data.text_condition import TextCondition
        from icve.editing.samplers import SamplerSettings

        received = [b""]  # what was sent takes this place
        dist.broadcast_object_list(received, group=self.waiting, group_src=0)
        with torch.serialization.safe_globals([TextCondition, SamplerSettings]):
            return torch.load(io.BytesIO(received[0]), map_location="cpu", weights_only=True)

    @contextlib.contextmanager
    def _lost_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = re.sub(r"^\[[^]]*\] ", "", first_sentence(error))  # gloo says first where its source says it
            raise LostProcess(
                f"Process {self.rank} of {self.world} cannot go on: {reason} Those that share an edit "
                "end with it. The same command goes on from here; if memory was short, use more processes, or smaller "
                "--batch-size, --pixels or --window."
            ) from error


@contextlib.contextmanager
def joined(size: int | None, device: str | None) -> Iterator[Processes]:
    """Meet the other processes that `torchrun` started; without it there is this one.

    Args:
        size: how many share an edit. None: those of one machine, between which tokens are exchanged fastest.
        device: kind of device, of which every process takes the one of its own number; None: CUDA where there is one.

    Raises:
        ValueError: the processes cannot be grouped so, or have no devices of their own.
    """
    world = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if world == 1:
        if size not in (None, 1):
            raise ValueError(
                f"--sequence_parallel_size {size} needs {size} processes: start them with torchrun --nproc_per_node "
                f"{size} -m icve edit ..."
            )
        yield Processes(device=device)
        return
    rank = int(os.environ["RANK"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    size = here if size is None else size
    if world % size:
        raise ValueError(
            f"{world} processes cannot be grouped by {size}: --sequence_parallel_size must divide their number."
        )
    device = _own_device(device, int(os.environ.get("LOCAL_RANK", rank)), here)

    import torch.distributed as dist

    from icve.models.sequence_parallel import set_sequence_parallel
    from icve.runtime.shutdown import let_exchanges_end

    dist.init_process_group("gloo", timeout=_MEETING)
    everybody = dist.new_group(backend="gloo", timeout=_WAITING)
    waiting = exchange = None
    if size > 1:
        ranks = [list(range(start, start + size)) for start in range(0, world, size)]
        # Every process takes part in making every group.
        waiting = [dist.new_group(group, backend="gloo", timeout=_WAITING) for group in ranks][rank // size]
        backend = dist.get_default_backend_for_device(device)
        exchange = [dist.new_group(group, backend=backend, timeout=_EXCHANGE) for group in ranks][rank // size]
    set_sequence_parallel(exchange)
    try:
        yield Processes(rank, world, size, device, waiting, everybody)
    finally:
        set_sequence_parallel(None)
        let_exchanges_end()
    dist.destroy_process_group()  # not after an error: it could wait for an exchange that never ends


def _own_device(name: str | None, local_rank: int, processes: int) -> str:
    """The device of a process; Raises ValueError where this machine has not one for each."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return name
    if ":" in name:
        raise ValueError(f"--device {name} would be that of all {processes} processes: leave the number out.")
    try:
        devices = torch.get_device_module(name)
        count = devices.device_count()
    except RuntimeError:
        count = 0
    if count < processes:
        raise ValueError(
            f"{processes} processes need {processes} devices {name!r}, and this machine has {count}: start as many as "
            "there are, or give --device cpu."
        )
    devices.set_device(local_rank)
    return f"{name}:{local_rank}"
