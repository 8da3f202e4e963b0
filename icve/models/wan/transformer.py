"""The in-context Wan diffusion transformer: a text-to-video DiT of Wan 2.1 or 2.2 that also sees a source video.

As in ICVE, the source's clean tokens and the target's noised tokens go through the same weights and carry the same 3-D
positions; the source is modulated at timestep 0, as Wan 2.2 does with clean frames, or at the target's. One attention
sees [source | target]; the text is seen by cross-attention. Parameter and configuration names are those of diffusers'
`WanTransformer3DModel`, so its checkpoints load unchanged. Processes may share its tokens (`sequence_parallel`).

Shape legend: B batch, C latent channels, T/h/w latent frames, height, width, N tokens, L text tokens, D width, H heads.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from torch import Tensor, nn

from icve.data.text_condition import TextCondition
from icve.models.attention import joint_attention, packed_attention
from icve.models.denoiser import InContextTransformer, Latents
from icve.models.layout import (
    REFERENCE_TIME,
    Grid,
    PackedLayout,
    Rule,
    Runs,
    Segment,
    Time,
    pack,
    padded_text,
    text_key_bias,
    valid_text_lengths,
)
from icve.models.modulation import gated_residual, modulated_norm
from icve.models.rope import norm_rotate
from icve.runtime.transfers import to_device

ROPE_THETA = 10000.0


class AcrossHeadsNorm(nn.RMSNorm):
    """RMS norm over all heads together, and the rotation of each: a module, so that offloading brings the weight."""

    eps: float

    # Modules are free to take what they like: only torch's RMSNorm gives its forward a type.
    def forward(self, x_BNHD: Tensor, frequencies_ND: Tensor | None) -> Tensor:  # type: ignore[override]
        return norm_rotate(x_BNHD, self.weight.view(x_BNHD.shape[-2:]), frequencies_ND, self.eps)


class Attention(nn.Module):
    """Projections of an attention, in which queries and keys are normalised over all channels."""

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (AcrossHeadsNorm(width, eps=eps) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def query(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, H, D/H)."""
        return self.norm_q(self.to_q(x).unflatten(-1, (self.heads, -1)), rope)

    def key_value(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> two (B, N, H, D/H)."""
        key, value = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.to_k, self.to_v))
        return self.norm_k(key, rope), value


class Block(nn.Module):
    """Self-attention, cross-attention to the text, and an MLP, one after the other."""

    def __init__(self, width: int, ffn_width: int, heads: int, cross_attn_norm: bool, eps: float):
        super().__init__()
        self.eps = eps
        self.attn1 = Attention(width, heads, eps)
        self.attn2 = Attention(width, heads, eps)
        self.norm2 = nn.LayerNorm(width, eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(width, inner_dim=ffn_width, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, width))

    def forward(
        self,
        hidden_states: Tensor,
        words: Tensor,
        conditions: Tensor,
        rope: Tensor,
        layout: PackedLayout,
        of_words: PackedLayout,
    ) -> Tensor:
        """This process's tokens (B, n, D), text (B, L, D) and conditions (B, times, 6, D) -> tokens."""
        x, runs = hidden_states, layout.runs
        vectors = (self.scale_shift_table[:, None] + conditions).to(x.dtype).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        normed = modulated_norm(x, shift1, scale1, runs, self.eps)
        attention = joint_attention(self.attn1.query(normed, rope), *self.attn1.key_value(normed, rope), layout)
        key, value = self.attn2.key_value(words)  # while processes exchange
        attention.attend()
        x = gated_residual(x, self.attn1.to_out[0](attention.packed()), gate1, runs)
        attended = packed_attention(self.attn2.query(self.norm2(x)), key, value, of_words)
        x = x + self.attn2.to_out[0](attended.flatten(2))
        return gated_residual(x, self.ffn(modulated_norm(x, shift2, scale2, runs, self.eps)), gate2, runs)


class ConditionEmbedder(nn.Module):
    """Timesteps and text, brought to the model's width."""

    def __init__(self, width: int, freq_dim: int, text_dim: int):
        super().__init__()
        self.timesteps_proj = Timesteps(num_channels=freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(freq_dim, width)
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, width, act_fn="gelu_tanh")

    def forward(self, timestep: Tensor, times: Sequence[Time]) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) -> e of the target (B, D), and the blocks' vectors at every time (B, times, 6, D)."""
        distinct = torch.cat([timestep, torch.zeros_like(timestep[:1])])
        features = self.timesteps_proj(distinct).to(self.time_proj.weight.dtype)
        embedded = self.time_embedder(features)
        projected = self.time_proj(F.silu(embedded)).unflatten(1, (6, -1))
        vectors = {"target": projected[:-1], "zero": projected[-1:].expand_as(projected[:-1])}
        return embedded[:-1], torch.stack([vectors[time] for time in times], dim=1)


class WanConfig(FrozenDict):
    """The arguments of the transformer, as its `config` has them."""

    patch_size: Sequence[int]
    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    text_dim: int
    freq_dim: int
    ffn_dim: int
    num_layers: int
    cross_attn_norm: bool
    eps: float
    text_len: int | None
    source_timestep: Time
    masks: bool


class WanInContextTransformer3DModel(InContextTransformer, ModelMixin):
    """Velocity of the noised target, given the clean source and the instruction.

    The arguments are diffusers' `WanTransformer3DModel`'s and two of ours; the defaults are the 14B's. A freshly built
    model is initialised as a DiT: every block starts as the identity, and the output as zero.

    Args:
        patch_size: latents per token along (time, height, width).
        num_attention_heads, attention_head_dim: width D is their product.
        in_channels, out_channels: latent channels.
        text_dim: width of the text encoder's output.
        freq_dim: features of a timestep.
        ffn_dim: width of the MLPs.
        num_layers: blocks.
        cross_attn_norm: whether the input of cross-attention is normalised, as in all published models.
        qk_norm: "rms_norm_across_heads", the only kind Wan has.
        eps: of all norms.
        image_dim, added_kv_proj_dim, pos_embed_seq_len: None; others are image-to-video models of Wan 2.1.
        rope_max_seq_len: as the published configurations have it; positions have no limit here.
        text_len: rows of text that the model attends to; those beyond a text are zero, and part of the result. None:
            a text's own rows and no others, for a model that is not one of the published ones.
        source_timestep: the time the source is modulated at: "zero" (ICVE's way) or "target".
        masks: take a mask of the region to change: a patch embedding of it, which starts at zero and thus as no change
            of a model without, is added to the tokens of source and target. Without a mask it adds nothing.

    Raises:
        ValueError: qk_norm is another, the weights are an image-to-video model's, or source_timestep is unknown.
    """

    config: WanConfig
    zero_at_first: ClassVar = ("mask_embedder.weight",)
    rule: Rule = "full"  # which tokens attend to which, see `icve.models.layout.PackedLayout`
    _supports_gradient_checkpointing = True
    # diffusers gives these no type but that of their defaults, None and [].
    _skip_layerwise_casting_patterns: ClassVar = ["patch_embedding", "condition_embedder", "norm"]  # type: ignore[assignment, misc]
    _no_split_modules: ClassVar = ["Block"]  # type: ignore[assignment, misc]
    _repeated_blocks: ClassVar = ["Block"]  # type: ignore[misc]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        text_len: int | None = 512,
        source_timestep: Time = "zero",
        masks: bool = False,
    ) -> None:
        super().__init__()
        if not masks:  # the configuration is then the published one
            self._internal_dict = FrozenDict({name: v for name, v in self.config.items() if name != "masks"})
        self.takes_masks = masks
        if qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm must be 'rms_norm_across_heads', not {qk_norm!r}.")
        if image_dim or added_kv_proj_dim or pos_embed_seq_len:
            raise ValueError(
                "A Wan transformer with image_dim, added_kv_proj_dim or pos_embed_seq_len is an image-to-video (I2V) "
                "model's: take the text-to-video (T2V) one."
            )
        if source_timestep not in ("zero", "target"):
            raise ValueError(f"source_timestep is 'zero' or 'target', not {source_timestep!r}.")
        width = num_attention_heads * attention_head_dim
        self.patch = (patch_size[0], patch_size[1], patch_size[2])
        space = 2 * (attention_head_dim // 6)
        self.axes_dim = (attention_head_dim - 2 * space, space, space)

        self.patch_embedding = nn.Conv3d(in_channels, width, kernel_size=self.patch, stride=self.patch)
        self.mask_embedder = nn.Conv3d(1, width, self.patch, self.patch, bias=False) if masks else None
        if self.mask_embedder is not None:
            nn.init.zeros_(self.mask_embedder.weight)
        self.condition_embedder = ConditionEmbedder(width, freq_dim, text_dim)
        self.blocks = nn.ModuleList(
            Block(width, ffn_dim, num_attention_heads, cross_attn_norm, eps) for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(width, out_channels * math.prod(self.patch))
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, width))
        self.gradient_checkpointing = False
        last = [self.condition_embedder.time_proj, self.proj_out]
        # Cross-attention has no gate: its output starts at zero, as the gates of the others do.
        crossed = [cast(Block, block).attn2.to_out[0] for block in self.blocks]
        for linear in cast(list[nn.Linear], [*last, *crossed]):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        hidden_states: Tensor,
        source_hidden_states: Tensor | None = None,
        prefix_hidden_states: Tensor | None = None,
        reference_hidden_states: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        referenced: Tensor | None = None,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity ε − x₀ of the target.

        Args:
            hidden_states: (B, C, T, h, w) noised target latents.
            source_hidden_states: (B, C, T', h', w') clean source latents; None is plain text-to-video. Tokens of both
                are numbered from the origin, so equal grids carry equal positions.
            prefix_hidden_states: (B, C, P, h, w) clean latent frames that come before the target's: at timestep zero,
                as Wan 2.2 is given an image. The target's frames are numbered from P on.
            reference_hidden_states: (B, C, 1, h'', w'') clean latents of a picture to take looks from, modulated as the
                source and `REFERENCE_TIME` away from it in time.
            mask: (B, 1, T, h, w), 1 in the region to change and -1 elsewhere, or all 0 as without one; for models with
                `masks`, and with a source of the target's size.
            referenced: (B,) bool, which samples have a reference; None: all. It is read: on the CPU that costs nothing.
            timestep: (B,) 1000·σ, in 0..1000.
            encoder_hidden_states: (B, L, Dt) text states, L at most `text_len` where it is a number.
            encoder_attention_mask: (B, L) 1/True on valid tokens, right-padded; None when all are. On the CPU it
                costs no synchronisation.

        Returns:
            (B, C, T, h, w) in the model's dtype.

        Raises:
            ValueError: a size is no multiple of the patch, a text is longer than `text_len` or has no valid token, or
                the text's mask is not right-padded, or `mask` does not fit the configuration.
        """
        marks = self.mask_tokens(hidden_states, source_hidden_states, mask)
        before = 0 if prefix_hidden_states is None else self.token_grid(prefix_hidden_states)[0]
        target = Grid(self.token_grid(hidden_states), (before, 0, 0))
        segments, tokens = [], []
        if source_hidden_states is not None:
            source = Grid(self.token_grid(source_hidden_states))
            segments.append(Segment("source", source.tokens, self.config.source_timestep, source))
            clean = self.patch_embedding(source_hidden_states)
            tokens.append(clean if marks is None or clean.shape != marks.shape else clean + marks)
        if prefix_hidden_states is not None:
            prefix = Grid(self.token_grid(prefix_hidden_states))
            segments.append(Segment("prefix", prefix.tokens, "zero", prefix))
            tokens.append(self.patch_embedding(prefix_hidden_states))
        segments.append(Segment("target", target.tokens, rope=target))
        noised = self.patch_embedding(hidden_states)
        tokens.append(noised if marks is None else noised + marks)
        if reference_hidden_states is not None:
            grid = Grid(self.token_grid(reference_hidden_states), (REFERENCE_TIME, 0, 0))
            present = None if referenced is None else tuple(referenced.tolist())
            segments.append(Segment("reference", grid.tokens, self.config.source_timestep, grid, present=present))
            tokens.append(self.patch_embedding(reference_hidden_states))
        x = torch.cat([part.flatten(2).transpose(1, 2) for part in tokens], dim=1)
        whole = (segments[-1].tokens,) * len(x)
        layout = pack(segments, whole, x.device, x.dtype, self.config.num_attention_heads, self.rule)
        if layout.shards is not None:
            x = layout.shards.take(x, 1)
        rope = layout.rotations(self.axes_dim, ROPE_THETA, x.device)
        embedded, conditions = self.condition_embedder(timestep, layout.times)
        rows, of_words = text_rows(encoder_hidden_states, encoder_attention_mask, self.config.text_len)
        words = self.condition_embedder.text_embedder(rows)

        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, words, conditions, rope, layout, of_words)
            else:
                x = block(x, words, conditions, rope, layout, of_words)

        x = x[:, layout.section("target")]
        shift, scale = (self.scale_shift_table + embedded[:, None]).to(x.dtype).chunk(2, dim=1)
        x = self.proj_out(modulated_norm(x, shift, scale, Runs((0,), ((0, x.shape[1]),)), self.config.eps))
        if layout.shards is not None:
            x = layout.shards.gather(x, [segment.name for segment in segments].index("target"))
        return self.unpatchify(x, target.size)

    def arguments(
        self, x: Latents, sigma: Tensor, text: TextCondition, context: Latents, guidance: float
    ) -> dict[str, Any]:
        """x has "video"; the context what there is of "source", "prefix", "reference", "referenced" and "mask"."""
        return {
            "hidden_states": x["video"],
            "source_hidden_states": context.get("source"),
            "prefix_hidden_states": context.get("prefix"),
            "reference_hidden_states": context.get("reference"),
            "referenced": context.get("referenced"),
            "mask": context.get("mask"),
            "timestep": 1000.0 * sigma,
            "encoder_hidden_states": text.embeddings,
            "encoder_attention_mask": text.mask,
        }

    def blank_text(self, length: int) -> TextCondition:
        """One text of so many tokens, all zero."""
        mask = torch.ones(1, length, dtype=torch.bool, device="cpu")  # it is read
        return TextCondition(torch.zeros(1, length, self.config.text_dim), mask)

    def named(self, output: Tensor) -> dict[str, Tensor]:
        return {"video": output}

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, N, pt·p·p·C), channels innermost, -> (B, C, T, h, w)."""
        x = tokens.unflatten(1, grid).unflatten(-1, (*self.patch, -1))  # B t h w pt ph pw C
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def text_rows(text_BLD: Tensor, mask_BL: Tensor | None, total: int | None) -> tuple[Tensor, PackedLayout]:
    """The rows of text that cross-attention sees, and their layout as its keys.

    Wan attends to `total` rows, of which those beyond a text are zero. They are all alike: in float32 one of them
    stands for all, with the logarithm of their number added to its logits, which is exact. Sixteen bits cannot hold
    that logarithm well, and their kernels are fastest without a bias: there all rows are made.

    Args:
        text_BLD: text states.
        mask_BL: valid tokens, right-padded; None where all are.
        total: rows that the model was trained with; None: those of each text.

    Raises:
        ValueError: a text is longer, or as `valid_text_lengths`.
    """
    lengths = (text_BLD.shape[1],) * len(text_BLD) if mask_BL is None else valid_text_lengths(mask_BL)
    longest, device = max(lengths), text_BLD.device
    text = padded_text(text_BLD, longest)
    words = Segment("text", text.shape[1], shared=True)
    if total is None:
        uneven = min(lengths) < words.tokens
        bias = text_key_bias(lengths, 0, words.tokens, device, text.dtype) if uneven else None
        return text, PackedLayout((words,), key_bias=bias)
    if longest > total:
        raise ValueError(f"A text has {longest} tokens, and this model takes {total}: cut it (text_len, max_tokens).")
    counts = to_device(torch.tensor(lengths), device)[:, None]
    mixed = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if mixed else text_BLD.dtype
    shortcut = dtype.itemsize >= 4 and min(lengths) < total
    text = text[:, :total]
    rows = F.pad(text, (0, 0, 0, 1 if shortcut else total - text.shape[1]))
    valid = torch.arange(rows.shape[1], device=device) < counts
    rows = rows.masked_fill(~valid[..., None], 0)
    bias = None
    if shortcut:
        bias = torch.zeros(rows.shape[:2], device=device, dtype=dtype).masked_fill_(~valid, float("-inf"))
        bias[:, -1:] = (total - counts).to(dtype).log()
        bias = bias[:, None, None]
    return rows, PackedLayout((Segment("text", rows.shape[1], shared=True),), key_bias=bias)


TransformerBlockRegistry.register(
    model_class=Block,
    metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),  # type: ignore[arg-type]  # as diffusers registers its own
)
