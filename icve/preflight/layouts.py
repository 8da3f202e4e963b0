"""How a model and its training state are spread over GPUs, and how many bytes of what that leaves on each.

A layout is a ZeRO stage (what of the training state is partitioned over all GPUs), a sequence-parallel size (how many
GPUs share the tokens of one sample, by exchanging heads for tokens around attention) and what the blocks keep for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from icve.models.counting import Counts
from icve.models.recompute import MODES
from icve.training.distributed.activation_checkpointing import Checkpointing

# What Lightning's DeepSpeed strategy sets: numbers in a bucket of gradients, and of gathered parameters.
BUCKET = 200_000_000
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
ALIASES = {"fsdp": "zero3"} | {f"deepspeed_stage_{stage}": f"zero{stage}" for stage in (1, 2, 3)}


@dataclass(frozen=True)
class Model:
    """What does not depend on the layout.

    Attributes:
        parameters: of the transformer, or of the adapter that is trained instead.
        block: of the transformer's largest block.
        optimizer: bytes of the optimizer's state per float32 parameter.
        frozen: bytes of codec and text encoders on every GPU.
        width: D.
        blocks: double- and single-stream ones together.
        heads: of attention.
        weight: bytes of a number in the forward pass, 2 in 16-bit precision.
        mixed: weights are float32 and autocast to 16 bits; ZeRO keeps float32 originals of 16-bit weights anyway.
        ema: float32 averages of the weights are kept.
        adapted: bytes of the weights that an adapter is trained of.
    """

    parameters: int
    block: int
    optimizer: float
    frozen: int
    width: int
    blocks: int
    heads: int
    weight: int
    mixed: bool
    ema: bool
    adapted: int = 0


@dataclass(frozen=True)
class Layout:
    """A way to spread training over `gpus`; every group of `sequence_parallel` of them works on one sample."""

    gpus: int
    strategy: str
    sequence_parallel: int
    checkpointing: Checkpointing

    @property
    def zero(self) -> int:
        return STRATEGIES.index(self.strategy)

    @property
    def groups(self) -> int:
        """Groups of GPUs that work on different samples at once."""
        return self.gpus // self.sequence_parallel

    def differences(self, other: Layout) -> list[str]:
        """What has to be changed to get the other layout."""
        texts = {
            "gpus": f"{other.gpus} GPUs",
            "checkpointing": in_words(other.checkpointing),
            "sequence_parallel": f"sequence parallel {other.sequence_parallel}",
            "strategy": other.strategy,
        }
        return [text for name, text in texts.items() if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU when most are in use."""

    parameters: float
    gradients: float
    optimizer: float  # state and, where weights are computed with in 16 bits, their float32 originals
    ema: float
    frozen: float
    activations: float
    buffers: float  # of communication, gathered parameters and cast weights
    reserve: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def memory(model: Model, layout: Layout, counts: Counts, tokens: int, samples: int, reserve: float) -> Memory:
    """Bytes per GPU.

    ddp keeps what Lightning keeps: float32 weights that autocast casts for the pass, gradients, and their copies in
    the buckets that are reduced. ZeRO keeps what DeepSpeed keeps: 16-bit weights, gradients summed in float32, and
    float32 originals with the optimizer's state. The EMA is partitioned like the optimizer's state.

    Args:
        model: what is trained.
        layout: how.
        counts: of one sample.
        tokens: of one sample.
        samples: that one group of GPUs computes at once.
        reserve: bytes for the CUDA context, NCCL and fragmentation.
    """
    parameters, weight, gpus, zero = model.parameters, model.weight, layout.gpus, layout.zero
    ranks = layout.sequence_parallel
    activations = samples * counts.peak / ranks
    # Queries, keys, values and the result, once more while they are exchanged.
    exchange = 0 if ranks == 1 else samples * 4 * tokens / ranks * model.width * weight
    own = [parameters if zero < stage else parameters / gpus for stage in (1, 2, 3)]  # state, gradients, weights
    if zero == 0:
        stored: float = 4 if model.mixed else weight
        weights, gradients = parameters * stored, parameters * stored
        state = parameters * model.optimizer * stored / 4
        buffers = exchange + (parameters * weight if model.mixed else 0) + (gradients if gpus > 1 else 0)
    else:
        weights, gradients = own[2] * weight, own[1] * 4
        state = own[0] * (model.optimizer + (4 if weight == 2 else 0))
        bucket = min(BUCKET, parameters) * weight
        # Gradients on their way; and weights: a bucket of updated ones, or the block at work and the next one.
        buffers = exchange + bucket + (2 * model.block * weight if zero == 3 else bucket)
    average = 4 * own[0] if model.ema else 0
    weights += model.adapted / (gpus if zero == 3 else 1)
    return Memory(weights, gradients, state, average, model.frozen, activations, buffers, reserve)


def communication(model: Model, layout: Layout, tokens: int, samples: int, micro_steps: int) -> float:
    """Bytes that one GPU sends in one optimizer step.

    Args:
        model: what is trained.
        layout: how.
        tokens: of one sample.
        samples: that one group of GPUs computes at once.
        micro_steps: passes per optimizer step.
    """
    ranks, zero = layout.sequence_parallel, layout.zero
    share = (layout.gpus - 1) / layout.gpus
    whole = share * model.parameters * (4 if zero == 0 and model.mixed else model.weight)
    state = {
        0: 2 * whole,  # reduce-scatter and all-gather of the gradients, after the last pass
        1: 2 * whole,  # of the gradients, and of the updated weights
        2: (micro_steps + 1) * whole,  # gradients are scattered after every pass
        3: 3 * micro_steps * whole,  # weights are gathered for each pass forward and back, gradients scattered
    }[zero]
    if zero == 3:
        state += 2 * micro_steps * share * model.adapted
    # Four exchanges around attention forward, four back, and four where a block is computed again.
    exchanges = 8 * model.blocks + 4 * layout.checkpointing.blocks(model.blocks)
    message = samples * tokens / ranks * model.width * model.weight * (ranks - 1) / ranks
    return state + exchanges * message * micro_steps


def in_words(checkpointing: Checkpointing) -> str:
    """As "selective checkpointing of every 2nd block"."""
    if checkpointing.mode == "none":
        return "no checkpointing"
    suffix = {2: "nd", 3: "rd"}.get(checkpointing.every, "th")
    which = "" if checkpointing.every == 1 else f" of every {checkpointing.every}{suffix} block"
    return f"{checkpointing.mode} checkpointing{which}"


def ways_to_checkpoint(blocks: int) -> list[Checkpointing]:
    """Every mode and every k that checkpoints another number of so many blocks; the most memory comes first."""
    by_number = {Checkpointing("full", k).blocks(blocks): k for k in range(blocks, 0, -1)}
    ks = sorted(by_number.values(), reverse=True)
    return [Checkpointing(), *(Checkpointing(mode, k) for mode in MODES if mode != "none" for k in ks)]


def layouts(gpus: int, model: Model, batch: int, node: int, strategies: Sequence[str] = STRATEGIES) -> Iterator[Layout]:
    """The layouts that `gpus` GPUs, in nodes of `node`, allow for a global batch of a model.

    A sequence-parallel size must divide the heads and the GPUs and stays within a node; the groups must divide the
    batch. On one GPU nothing can be partitioned.
    """
    for ranks in range(1, min(node, gpus) + 1):
        if model.heads % ranks or gpus % ranks or batch % (gpus // ranks):
            continue
        for strategy in strategies:
            if gpus > 1 or strategy == "ddp" or len(strategies) == 1:
                for checkpointing in ways_to_checkpoint(model.blocks):
                    yield Layout(gpus, strategy, ranks, checkpointing)
