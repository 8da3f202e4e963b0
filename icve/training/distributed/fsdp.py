"""PyTorch's fully sharded data parallelism (FSDP2) and its hybrid (HSDP) under Lightning, with sequence parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from icve.training.distributed.sharded import Owned, ShardedState
from icve.training.distributed.ulysses import UlyssesGroups
from icve.training.lightning_types import editing


class FSDPUlyssesStrategy(ShardedState, UlyssesGroups, DDPStrategy):
    """FSDP2 with sequence parallelism: weights, gradients and optimizer state are shared, block by block.

    With `precision: bf16-mixed` blocks are gathered and computed in bfloat16; gradients are summed and weights updated
    in float32.

    Args:
        sequence_parallel_size: processes that share a sample's tokens.
        replicas: groups of processes that each hold all weights among them (hybrid sharding, HSDP): with one replica
            per node, weights never cross the network and gradients once. 1 shares them among all processes.
        reshard_after_forward: give a block's weights back after its forward pass, and fetch them again for the
            backward pass.
        **kwargs: of Lightning's DDPStrategy.

    Raises:
        ValueError: replicas below 1, or they do not divide the processes (raised at setup).
    """

    def __init__(
        self, sequence_parallel_size: int = 1, replicas: int = 1, reshard_after_forward: bool = True, **kwargs: Any
    ) -> None:
        if replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {replicas}.")
        super().__init__(sequence_parallel_size=sequence_parallel_size, **kwargs)
        self.replicas = replicas
        self.reshard_after_forward = reshard_after_forward

    def setup_distributed(self) -> None:
        super().setup_distributed()
        if self.world_size % self.replicas:
            raise ValueError(f"{self.world_size} processes cannot form {self.replicas} replicas of equal size.")

    def model_to_device(self) -> None:
        """Sharding, for training, moves block by block; a validation alone has the whole model on every device."""
        if editing(self.lightning_module).trainer.state.fn != TrainerFn.FITTING:
            super().model_to_device()

    def configure_ddp(self) -> None:
        shape, names = (self.replicas, self.world_size // self.replicas), ("replicate", "shard")
        first = 0 if self.replicas > 1 else 1
        self.mesh = init_device_mesh(self.root_device.type, shape[first:], mesh_dim_names=names[first:])
        options: dict[str, Any] = {"mesh": self.mesh, "reshard_after_forward": self.reshard_after_forward}
        if str(self.precision_plugin.precision) == "bf16-mixed":
            # Inputs keep their precision: noise levels are no bfloat16 numbers.
            options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        module = editing(self.lightning_module)
        transformer = module.transformer
        blocks = [m for m in transformer.modules() if type(m).__name__ in transformer._repeated_blocks]
        for part in (*blocks, transformer):
            if not str(self.precision_plugin.precision).endswith("16-true"):
                _use_full_precision(part)
            fully_shard(part, **options)
        self.model = module.to(self.root_device)  # buffers

    # ---- who owns what ------------------------------------------------------------------------------------------

    @property
    def torch_optimizer(self) -> Optimizer:
        return self.optimizers[0]

    @property
    def writes(self) -> bool:
        return self.replicas == 1 or self.mesh.get_local_rank("replicate") == 0

    def owned(self) -> list[Owned]:
        # Blocks that keep their gathered weights still have them after a validation, which has no backward pass.
        for module in editing(self.lightning_module).transformer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        parts = []
        for name, parameter in self.trained():
            shape, offsets = compute_local_shape_and_global_offset(parameter.shape, self.mesh, parameter.placements)
            count = torch.Size(shape).numel()
            if count:  # rows of a matrix follow each other
                start = offsets[0] * torch.Size(parameter.shape[1:]).numel()
                parts.append(Owned(name, start, parameter, 0, count))
        return parts

    def weights_changed(self) -> None:
        """Nothing: the weights that are computed with are the ones that are owned."""

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.trained():
            if parameter.grad is not None and self.writes:
                yield name, parameter.grad.to_local().flatten()


def _use_full_precision(module: nn.Module) -> None:
    """Cast weights that are to be trained and came in the 16 bits of their file: of one block at a time."""
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.element_size() == 2:
            parameter.data = parameter.data.float()
