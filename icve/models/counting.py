"""FLOPs and bytes of one training pass, counted by running the real transformer on the meta device.

Tensors there have shapes but no memory, so the 13B model at 50 000 tokens takes milliseconds. Blocks of one kind are
identical: models of one and of two blocks are run, and their difference is what every further block adds.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from icve.models.denoiser import InContextTransformer
from icve.models.families import arguments_of, family_of_class
from icve.models.family import located
from icve.models.lora import LoRA, add_lora
from icve.models.recompute import MODES, Mode, is_recomputed, recomputed
from icve.models.sequence_parallel import sequence_parallel


@dataclass(frozen=True)
class Sample:
    """Sizes of one training sample: frames, height and width of each of its latents, text tokens, and whether there is
    a reference picture as well.
    """

    frames: int
    height: int
    width: int
    text: int
    reference: bool = False


@dataclass(frozen=True)
class Counts:
    """One sample through the transformer and back; a multiplication with an addition is two FLOPs.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass, without what is computed again.
        recompute: FLOPs of the second forward pass of checkpointed blocks.
        saved: bytes that wait for the backward pass when the forward pass has ended, parameters and inputs excluded.
        peak: most bytes alive at any moment of both passes; parameters and their gradients excluded.
    """

    forward: float
    backward: float
    recompute: float
    saved: float
    peak: float


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as a GPU's fused kernel: the meta device would take the one that stores every score.

    By exchanging torch's function, and not by a mode of torch's: those are off while checkpointed blocks are computed
    again.
    """
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda *qkv, **_: torch.ops.aten._scaled_dot_product_flash_attention(*qkv)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive, and the most there were."""

    def __init__(self, ignored: set[int]) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known = ignored  # addresses of storages

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.live)
        return result

    def _freed(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def build_on_meta(
    kind: type[nn.Module], config: Mapping[str, Any], dtype: torch.dtype = torch.float32, lora: LoRA | None = None
) -> nn.Module:
    """A transformer of this class with shapes only, and with an adapter, which alone is trained then."""
    with torch.device("meta"):
        model = kind(**config)
        if lora is not None:
            add_lora(model, lora)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def block_depths(kind: type[nn.Module], config: Mapping[str, Any]) -> dict[str, int]:
    """How many blocks of each kind a transformer has, by the argument that says so, in the order they run.

    Raises:
        ValueError: the class is of no family.
    """
    family = family_of_class(f"{kind.__module__}.{kind.__qualname__}")
    if family is None:
        raise ValueError(f"{kind.__name__} is of no model family, so that its blocks cannot be counted.")
    complete = arguments_of(kind) | dict(config)
    return {name: complete[name] for name in family.blocks}


@dataclass(frozen=True, eq=False)
class Measured:
    """Counts of a transformer for one sample, however its blocks are checkpointed.

    Attributes:
        depths: blocks of each kind that it has, in the order they run.
        one, two: by kind and mode, counts of models with one and with two blocks of that kind, all run in that mode.
    """

    depths: Mapping[str, int]
    one: Mapping[str, Mapping[Mode, Counts]]
    two: Mapping[str, Mapping[Mode, Counts]]

    def counts(self, mode: Mode = "none", every: int = 1) -> Counts:
        """Counts where of `every` blocks the first is checkpointed in a mode; see `Checkpointing`."""
        return _extrapolated(self, mode, every)


@lru_cache
def _extrapolated(measured: Measured, mode: Mode, every: int) -> Counts:
    def one(name: str, kind: str, mode: Mode) -> float:
        return getattr(measured.one[kind][mode], name)

    def added(name: str, kind: str, mode: Mode) -> float:
        """By every further block."""
        return getattr(measured.two[kind][mode], name) - one(name, kind, mode)

    kinds = [kind for kind, depth in measured.depths.items() for _ in range(depth)]
    modes: list[Mode] = [mode if is_recomputed(i, mode, every) else "none" for i in range(len(kinds))]
    blocks = list(zip(kinds, modes, strict=True))
    names = ("forward", "backward", "recompute", "saved")
    sums = {name: one(name, *blocks[-1]) - added(name, *blocks[-1]) for name in names}  # what is not in the blocks
    peak = 0.0
    for block in blocks:
        for name in names:
            sums[name] += added(name, *block)
        # The most is alive when a block's gradient is computed: what the blocks before it saved, and its own work.
        peak = max(peak, sums["saved"] + one("peak", *block) - one("saved", *block))
    return Counts(**sums, peak=peak)


def count(
    kind: type[nn.Module], config: Mapping[str, Any], sample: Sample, dtype: torch.dtype, lora: LoRA | None = None
) -> Measured:
    """Counts of a transformer for one sample.

    Args:
        kind: the transformer's class, of a family's.
        config: its arguments.
        sample: its sizes.
        dtype: of parameters and activations.
        lora: the adapter that is trained instead of the weights.
    """
    hashable = tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(config.items()))
    return _count(f"{kind.__module__}.{kind.__qualname__}", hashable, sample, dtype, lora)


@lru_cache
def _count(
    path: str, arguments: tuple[tuple[str, Any], ...], sample: Sample, dtype: torch.dtype, lora: LoRA | None
) -> Measured:
    kind: type[nn.Module] = located(path)
    config = dict(arguments)
    depths = {name: depth for name, depth in block_depths(kind, config).items() if depth}
    none = dict.fromkeys(block_depths(kind, config), 0)
    one, two = (
        {name: run(kind, config | none | {name: depth}, sample, dtype, lora) for name in depths} for depth in (1, 2)
    )
    return Measured(depths, one, two)


def run(
    kind: type[nn.Module], config: Mapping[str, Any], sample: Sample, dtype: torch.dtype, lora: LoRA | None = None
) -> dict[Mode, Counts]:
    """Counts from running exactly this model, with every block in a mode."""
    model: Any = build_on_meta(kind, config, dtype, lora)
    inputs = _inputs(model, sample, dtype)
    for parameter in filter(lambda one: one.requires_grad, model.parameters()):
        parameter.register_post_accumulate_grad_hook(_drop_gradient)  # a finished one is counted with the parameters
    passes: dict[Mode, Counts] = {}
    for mode in MODES:
        if mode != "none":
            model.enable_gradient_checkpointing(recomputed(mode))
        passes[mode] = _pass(model, inputs)
    plain = passes["none"].backward
    return {mode: replace(c, backward=plain, recompute=c.backward - plain) for mode, c in passes.items()}


def _pass(model: InContextTransformer, inputs: Mapping[str, Any]) -> Counts:
    """A pass forward and back; what is computed again is in `backward`."""
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *_tensors(inputs))}
    flops = FlopCounterMode(display=False)
    with torch.device("meta"), _fused_attention(), flops:
        loss = _loss(model, inputs)
        forward = flops.get_total_flops()
        loss.backward()
        del loss
    # A pass of its own: the FLOP counter keeps tensors alive that checkpointed blocks compute again.
    with torch.device("meta"), _fused_attention(), LiveBytes(known) as memory:
        loss = _loss(model, inputs)
        saved = memory.live - loss.nbytes
        loss.backward()
    return Counts(forward, flops.get_total_flops() - forward, 0, saved, memory.most)


def training_flops(kind: type[nn.Module], config: Mapping[str, Any], sample: Sample) -> int:
    """FLOPs of one sample's forward and backward pass, where nothing is computed again.

    Args:
        kind: the transformer's class, of a family's.
        config: all its arguments.
        sample: its sizes.
    """
    depths = block_depths(kind, config)
    one = dict.fromkeys(depths, 1)
    first = _training_flops(kind, {**config, **one}, sample)
    further = {name: _training_flops(kind, {**config, **one, name: 2}, sample) - first for name in depths}
    return first + sum((depths[name] - 1) * flops for name, flops in further.items())


def _training_flops(kind: type[nn.Module], config: Mapping[str, Any], sample: Sample) -> int:
    """The same from running exactly this model."""
    model: Any = build_on_meta(kind, config)
    # All of a sample's tokens, also where a run counts that shares them among processes.
    with sequence_parallel(None), torch.device("meta"), _fused_attention(), FlopCounterMode(display=False) as flops:
        _loss(model, _inputs(model, sample, torch.float32)).backward()
    return flops.get_total_flops()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _inputs(model: InContextTransformer, sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the forward pass for one sample, whose text tokens are all valid."""
    size = (1, model.config.in_channels, sample.frames, sample.height, sample.width)
    x, context = (
        {name: torch.empty(size, dtype=dtype, device="meta") for name in names}
        for names in (model.latents, model.context)
    )
    text = model.blank_text(sample.text).to("meta", dtype)
    if sample.reference:
        context["reference"] = torch.empty((*size[:2], 1, *size[3:]), dtype=dtype, device="meta")
    return model.arguments(x, torch.empty(1, device="meta"), text, context, 1.0)


def _loss(model: InContextTransformer, inputs: Mapping[str, Any]) -> Tensor:
    """A number that every predicted latent has a part in."""
    return reduce(add, (predicted.sum() for predicted in model.named(model(**inputs)).values()))


def _tensors(inputs: Mapping[str, Any]) -> list[Tensor]:
    return [tensor for tensor in inputs.values() if isinstance(tensor, Tensor)]
