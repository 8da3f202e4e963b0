"""Closed forms of what `icve.models.counting` counts of HunyuanVideo's transformer: a check on the counts.

D width, r MLP ratio, V visual tokens (source and target), L text tokens, N = V + L. Biases, norms and everything that
is not proportional to D² or N are left out where they are small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icve.models.counting import Measured, Sample
from icve.models.recompute import MODES, Mode


def parameters(config: Mapping[str, Any]) -> float:
    """Parameters of the transformer: 2 (10 + 2r) D² of a double-stream block, (7 + 2r) D² + D² of a single-stream one.

    A block's matrices: q, k, v and output (4), MLP (2r), modulation (6 per stream in double-stream blocks, 3 in
    single-stream ones); a single-stream block's output projection joins those of attention and MLP.
    """
    D, r = _width(config), config["mlp_ratio"]
    blocks = config["num_layers"] * 2 * (10 + 2 * r) + config["num_single_layers"] * (7 + 2 * r)
    refiner = config["num_refiner_layers"] * (6 + 2 * r)
    # Timestep, pooled text and guidance embeddings, the refiner's two, the modulation of the last layer.
    conditions = 3 + config["guidance_embeds"] + 1 + 2
    inputs = 2 * config["text_embed_dim"] + config["pooled_projection_dim"] + 256 * (2 + config["guidance_embeds"])
    return (blocks + refiner + conditions) * D**2 + inputs * D


def forward_flops(config: Mapping[str, Any], sample: Sample) -> float:
    """FLOPs of one forward pass: 2 per token and parameter of a matrix, and 4 N² D of attention, per block."""
    D, r, N = _width(config), config["mlp_ratio"], sum(tokens(config, sample))
    blocks = config["num_layers"] + config["num_single_layers"]
    refiner = config["num_refiner_layers"] * (2 * sample.text * (4 + 2 * r) * D**2 + 4 * sample.text**2 * D)
    text = 2 * sample.text * config["text_embed_dim"] * D
    return blocks * 2 * N * (4 + 2 * r) * D**2 + attention_flops(config, sample) + refiner + text


def attention_flops(config: Mapping[str, Any], sample: Sample) -> float:
    """FLOPs of the scores and sums of attention in all blocks."""
    return 4 * sum(tokens(config, sample)) ** 2 * _width(config) * (config["num_layers"] + config["num_single_layers"])


def saved_bytes(config: Mapping[str, Any], sample: Sample, item: int, mode: Mode) -> float:
    """Bytes kept for the backward pass.

    In units of N D numbers a double-stream block keeps its input, two times modulated norm and update (4), q and k as
    projected (2), q, k, v as attended to (3), the result of attention, the middle of the block (1 each), and the MLP
    before and after its activation (2r). A single-stream block has one norm and no middle, keeps v only once (5 for q,
    k, v), and the MLP after its activation together with attention's result (1 + r).
    Checkpointed, a block keeps its input (1), and selectively the result of attention as well.
    Beside the blocks: the rotations, and two units of the first and the last layer.
    """
    D, r, N = _width(config), config["mlp_ratio"], sum(tokens(config, sample))
    double, single = {"none": (11 + 2 * r, 10 + 2 * r), "selective": (2, 2), "full": (1, 1)}[mode]
    units = config["num_layers"] * double + config["num_single_layers"] * single + 2
    # The norms of q and k keep a float32 factor per head, and attention the logarithm of its sum.
    heads = {"none": 3, "selective": 1, "full": 0}[mode] * config["num_attention_heads"] * 4
    blocks = config["num_layers"] + config["num_single_layers"]
    return N * (units * D * item + blocks * heads + config["attention_head_dim"] * 4)


def deviation(config: Mapping[str, Any], sample: Sample, item: int, measured: Measured) -> float:
    """Largest relative difference between these closed forms and the counts in every mode of checkpointing."""
    pairs = [(forward_flops(config, sample), measured.counts().forward)]
    pairs += [(saved_bytes(config, sample, item, mode), measured.counts(mode).saved) for mode in MODES]
    return max(abs(expected / counted - 1) for expected, counted in pairs)


def tokens(config: Mapping[str, Any], sample: Sample) -> tuple[int, int]:
    """(visual, text) tokens of one sample; source and target count both."""
    patch = config["patch_size_t"] * config["patch_size"] ** 2
    return 2 * sample.frames * sample.height * sample.width // patch, sample.text


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]
