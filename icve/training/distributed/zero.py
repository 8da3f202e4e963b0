"""DeepSpeed's ZeRO under Lightning, on GPUs (NCCL) and CPUs (gloo), with sequence parallelism."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from icve.training.distributed.activation_checkpointing import compiled_blocks
from icve.training.distributed.sharded import Owned, ShardedState
from icve.training.distributed.ulysses import UlyssesGroups
from icve.training.lightning_types import editing

if importlib.util.find_spec("deepspeed") is not None:  # Lightning's class says where it is missing
    with contextlib.redirect_stdout(sys.stderr):  # its log keeps the stream it finds, and ours is for results
        import deepspeed
        from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    # Compiled for its inference only, a minute at first use; killed meanwhile, it keeps all later starts waiting.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedAnywhere(DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy, also without a GPU: it asks for CUDA in these places."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        if self.root_device.type == "cuda":
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(
        self, model: torch.nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        return self._engine(self.config, model, optimizer, lr_scheduler)

    def _initialize_deepspeed_inference(self, model: torch.nn.Module) -> None:
        wanted = ("fp16", "bf16", *(["zero_optimization"] if self.zero_stage_3 else []))
        own = {key: value for key, value in (self.config or {}).items() if key in wanted}
        config = {"train_micro_batch_size_per_gpu": 1, **own}
        self.model, _ = self._engine(config, model, None, None)

    def _engine(self, config: Any, model: torch.nn.Module, optimizer: Any, scheduler: Any) -> tuple[Any, Any]:
        engine, deepspeed_optimizer, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad] if optimizer is not None else [],
            optimizer=optimizer,
            lr_scheduler=scheduler,
            dist_init_required=False,
        )
        return engine, deepspeed_optimizer


class DeepSpeedUlyssesStrategy(ShardedState, UlyssesGroups, DeepSpeedAnywhere):
    """Lightning's DeepSpeedStrategy with sequence parallelism: every process holds a part of the training state.

    Gradients are averaged over all processes (ZeRO is told nothing of the groups), clipped by their norm as the
    trainer's `gradient_clip_val` says, and a step with a gradient that is not finite is skipped by all of them. In
    bfloat16 they are summed over micro-batches in float32, unless the config's data_types.grad_accum_dtype says
    otherwise.
    Checkpoints are the project's own, nothing is unpickled.

    Args:
        sequence_parallel_size: processes that share a sample's tokens.
        stage: of ZeRO. 1 shares the optimizer's state and the full-precision weights among all processes, 2 also the
            gradients, 3 also the weights that are computed with.
        **kwargs: of Lightning's strategy.

    Raises:
        ValueError: another stage, or an option of Lightning's strategy that this one replaces.
    """

    def __init__(self, sequence_parallel_size: int = 1, stage: int = 2, **kwargs: Any) -> None:
        if stage not in (1, 2, 3):
            raise ValueError(f"ZeRO has the stages 1, 2 and 3, not {stage}: without it, use DDPUlyssesStrategy.")
        if kwargs.get("load_full_weights") or str(kwargs.get("remote_device")) == "nvme":
            raise ValueError("Weights on NVMe, and load_full_weights, are not supported: leave them out.")
        if kwargs.get("logging_batch_size_per_gpu", "auto") == "auto":
            kwargs["logging_batch_size_per_gpu"] = 1  # for a log of DeepSpeed's own; batches here differ in size
        # Called after every step: whether it was made (its gradient was finite on all processes), and its norm ().
        self.after_step: Callable[[bool, Tensor], None] | None = None
        super().__init__(sequence_parallel_size=sequence_parallel_size, stage=stage, **kwargs)

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        if self.optimizers and isinstance(self.torch_optimizer, torch.optim.Adagrad):
            raise ValueError(
                "DeepSpeed replaces Adagrad by one of its own, which no learning-rate schedule reaches: choose another "
                "optimizer (torch.optim.AdamW), or icve.training.distributed.strategies.FSDPUlyssesStrategy."
            )

    def _format_config(self) -> None:
        super()._format_config()
        config = cast(dict[str, Any], self.config)
        if config.get("bf16", {}).get("enabled"):  # 8 bits of mantissa lose the smaller of what is summed
            config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")

    def _initialize_deepspeed_train(self, model: torch.nn.Module) -> None:
        for block in compiled_blocks(editing(self.lightning_module).transformer):
            # Stage 3 then fetches a block's weights at once, before it: not in the middle of what was compiled.
            deepspeed.utils.set_z3_leaf_module(block, True)
        exact = {name: parameter.detach() for name, parameter in self.trained()}
        super()._initialize_deepspeed_train(model)
        # DeepSpeed begins with full-precision weights that it has cast to 16 bits and back.
        for part in self.owned():
            part.weights.copy_(exact[part.name].view(-1)[part.start : part.start + part.count])

    # ---- the step -----------------------------------------------------------------------------------------------

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if isinstance(plugin, DeepSpeedPrecision):
            plugin = EnginePrecision(plugin.precision)  # type: ignore[arg-type]  # it has checked what it keeps
        self._precision_plugin = plugin

    # ---- who owns what ------------------------------------------------------------------------------------------

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer around ours."""
        return self.optimizers[0]

    @property
    def torch_optimizer(self) -> Optimizer:
        return self.zero.optimizer

    @property
    def _flat_groups(self) -> list[Tensor]:
        """Full-precision weights of this process by group: stage 1 in 16 bits has an optimizer class of its own."""
        zero = self.zero
        stage_1 = isinstance(zero, BF16_Optimizer)
        return zero.fp32_groups_flat_partition if stage_1 else zero.single_partition_of_fp32_groups

    def owned(self) -> list[Owned]:
        zero, parts = self.zero, []
        for name, parameter in self.trained():
            if self.zero_stage_3:
                group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
                start = self.global_rank * size  # equal parts, the last ones are padded
                count = min(size, parameter.ds_numel - start)
                flat = zero.fp32_partitioned_groups_flat[group]
            elif (mapping := parameter._hp_mapping) is None:
                continue
            else:
                place = mapping.hp_fragment_address
                start, offset, count = mapping.lp_fragment_address.start, place.start, place.numel
                flat = self._flat_groups[mapping.param_group_index]
                start, offset, count = mapping.lp_fragment_address.start, place.start, place.numel
                # DeepSpeed has an optimizer of its own for stage 1 with gradients in full precision.
                flats = (
                    "single_partition_of_fp32_groups"
                    if hasattr(zero, "single_partition_of_fp32_groups")
                    else "fp32_groups_flat_partition"
                )
                flat = getattr(zero, flats)[mapping.param_group_index]
            if count > 0:
                parts.append(Owned(name, start, flat, offset, count))
        return parts

    @torch.no_grad()
    def weights_changed(self) -> None:
        if self.zero_stage_3:
            self.zero._partition_all_parameters()
            for group in range(len(self.zero.fp16_groups)):
                self.zero._reassign_or_swap_out_partitioned_parameters(group)
            if whole := self.zero.persistent_parameters:  # too small to be fetched whenever they are needed
                whole[0].all_gather(whole)
        else:
            self.zero.update_lp_params()

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        zero = self.zero
        for name, parameter in self.trained():
            if self.zero_stage_3:
                gradient = zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition[parameter.ds_id]
                left = parameter.ds_numel - self.global_rank * gradient.numel()
                yield name, gradient.flatten()[: max(0, left)]
            elif (mapping := parameter._hp_mapping) is not None:
                place = mapping.lp_fragment_address
                gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
                if gradient.numel() == parameter.numel():  # whole where DeepSpeed keeps it so
                    gradient = gradient[place.start : place.start + place.numel]
                yield name, gradient


class EnginePrecision(DeepSpeedPrecision):
    """Steps of DeepSpeed's engine as steps of Lightning's loop.

    Differs from Lightning's plugin: batches keep their precision (the module casts what the transformer is given), a
    micro-batch without samples has no backward pass, the loss is divided by the number of micro-batches once, and
    hooks before an optimizer step are called before steps only.
    """

    def convert_input(self, data: Any) -> Any:
        return data

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if model.samples:
            # An infinite loss may have a finite gradient, and the engine looks at gradients only: 1 / 0 is none.
            tensor = tensor / tensor.isfinite()
            model.trainer.model.backward(tensor, scale_wrt_gas=False)  # Lightning has divided it

    def optimizer_step(  # type: ignore[override]  # Lightning's own, for its trainer, takes more than Fabric's
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> None:
        closure()
        engine, trainer = model.trainer.model, model.trainer
        ends_step = engine.is_gradient_accumulation_boundary()
        if ends_step:
            self._after_closure(model, optimizer)
        engine.step()
        strategy = trainer.strategy
        if ends_step and strategy.after_step is not None:
            strategy.after_step(not strategy.zero.overflow, torch.as_tensor(strategy.zero._global_grad_norm))
