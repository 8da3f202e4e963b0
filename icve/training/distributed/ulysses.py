"""Sequence parallelism under Lightning: groups of processes that share every sample's tokens.

Processes are numbered so that those of a group are neighbours: with 8 processes and groups of 4, ranks 0-3 share one
part of the batch and ranks 4-7 the other. Gradients are averaged over all processes, which is exact (see
`icve.models.sequence_parallel`), so a strategy for data parallelism needs nothing but these groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from icve.data.share import SampleGroup
from icve.data.shared_loading import gather_clips
from icve.models.sequence_parallel import set_sequence_parallel
from icve.training.lightning_types import editing

if TYPE_CHECKING:  # what strategies with groups or shared weights are, DeepSpeed's too
    from lightning.pytorch.strategies import DDPStrategy as MixedInto
else:
    MixedInto = object


def count_groups(processes: int, size: int) -> int:
    """How many groups of `size` so many processes form.

    Raises:
        ValueError: the size does not divide them, or is below 1.
    """
    if size < 1:
        raise ValueError(f"sequence_parallel_size must be at least 1, got {size}.")
    if processes % size:
        raise ValueError(
            f"{processes} processes cannot be grouped by {size}: sequence_parallel_size must divide their number "
            "(devices x nodes)."
        )
    return processes // size


class UlyssesGroups(MixedInto):
    """Mixed into a strategy: makes the groups, and gives all processes of one the same samples.

    Args:
        sequence_parallel_size: processes that share a sample's tokens; it divides their number and the model's heads.
        *args, **kwargs: of the strategy.
    """

    def __init__(self, *args: Any, sequence_parallel_size: int = 1, **kwargs: Any) -> None:
        count_groups(0, sequence_parallel_size)  # 0: how many there are is known later
        super().__init__(*args, **kwargs)
        self.sequence_parallel_size = sequence_parallel_size
        self._group: dist.ProcessGroup | None = None
        self._hosts: dist.ProcessGroup | None = None  # the same processes, with messages between their hosts

    def setup_distributed(self) -> None:
        super().setup_distributed()
        size = self.sequence_parallel_size
        count_groups(self.world_size, size)
        if size > 1:
            self._group, _ = dist.new_subgroups(size, timeout=self._timeout)  # neighbours
            if dist.get_backend(self._group) == "gloo":
                self._hosts = self._group
            else:
                self._hosts, _ = dist.new_subgroups(size, timeout=self._timeout, backend="gloo")
        set_sequence_parallel(self._group)

    def setup(self, trainer: Any) -> None:
        module = editing(self.lightning_module)
        heads = module.transformer.config.num_attention_heads
        if heads % self.sequence_parallel_size:
            raise ValueError(
                f"The transformer's {heads} attention heads cannot be shared by {self.sequence_parallel_size} "
                "processes: choose a sequence_parallel_size that divides them."
            )
        if module.lora is not None and module.lora.dropout and self.sequence_parallel_size > 1:
            raise ValueError(
                "Processes that share a sample's tokens would drop out different parts of its text: set "
                "model.start.lora.dropout to 0, or sequence_parallel_size to 1."
            )
        super().setup(trainer)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """What the data modules and the random draws go by: groups, not processes, have samples of their own."""
        size = self.sequence_parallel_size
        return {"num_replicas": self.world_size // size, "rank": self.global_rank // size}

    @property
    def sample_group(self) -> SampleGroup | None:
        """This process's group, which shares the work of loading and encoding; None where it is alone."""
        return None if self._group is None or self._hosts is None else SampleGroup(self._group, self._hosts)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """The batch on the device, with what the group's other processes have loaded of it."""
        batch, group = super().batch_to_device(batch, device, dataloader_idx), self.sample_group
        return batch if group is None else gather_clips(batch, group, device or self.root_device)

    def on_exception(self, exception: BaseException) -> None:
        self._group = self._hosts = (
            None  # left to the end of the process: taking it apart could wait for one that is gone
        )
        super().on_exception(exception)

    def teardown(self) -> None:
        set_sequence_parallel(None)
        super().teardown()
        # The next stage of a curriculum makes its own, and each has buffers.
        for group in {self._group, self._hosts} - {None}:
            dist.destroy_process_group(group)
        self._group = self._hosts = None
