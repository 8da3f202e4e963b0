"""The in-context HunyuanVideo diffusion transformer (ICVE): a text-to-video DiT that also sees a source video.

The source's clean tokens and the target's noised tokens go through the same weights and carry the same 3-D positions;
only their modulation differs: the target (and the text) is modulated at its timestep t, the source at timestep 0. One
attention sees the packed sequence [source | target | text], with a reference picture [source | target | reference |
text]. Parameter and configuration names are those of diffusers'
`HunyuanVideoTransformer3DModel`, so its checkpoints load unchanged. Facts: methods §1.1. Processes may share its tokens
(`sequence_parallel`).

Shape legend: B batch, C latent channels, T/h/w latent frames, height, width, N tokens, L text tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from torch import Tensor, nn

from icve.data.text_condition import TextCondition
from icve.models.attention import Projections, joint_attention, packed_attention
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
    valid_text_lengths,
)
from icve.models.modulation import gated_residual, modulated_norm
from icve.models.rope import RotaryRMSNorm
from icve.runtime.transfers import to_device


class ConditionEmbedding(nn.Module):
    """vec(t) = time(t) + pooled text [+ guidance]: (B, D) vectors that modulate every block."""

    def __init__(self, width: int, pooled_dim: int, guidance_embeds: bool):
        super().__init__()
        self.time_proj = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(256, width)
        self.text_embedder = PixArtAlphaTextProjection(pooled_dim, width, act_fn="silu")
        self.guidance_embedder = TimestepEmbedding(256, width) if guidance_embeds else None

    def forward(
        self, timestep: Tensor, pooled: Tensor, guidance: Tensor | None = None, times: Sequence[Time] = ("target",)
    ) -> Tensor:
        """timestep (B,), pooled (B, Dp), guidance (B,) -> vec(timestep) or vec(0) for each time: (B, times, D)."""
        common = self.text_embedder(pooled)
        if self.guidance_embedder is not None:
            common = common + self.guidance_embedder(self.time_proj(guidance).to(pooled.dtype))
        distinct = torch.cat([timestep, torch.zeros_like(timestep[:1])])
        embedded = self.timestep_embedder(self.time_proj(distinct).to(pooled.dtype))
        vectors = {"target": embedded[:-1] + common, "zero": embedded[-1:] + common}
        return torch.stack([vectors[time] for time in times], dim=1)


class Attention(nn.Module):
    """Projections of a joint attention; a text stream has its own where `text_stream`, and shares them otherwise."""

    def __init__(self, width: int, heads: int, head_dim: int, text_stream: bool):
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.norm_q, self.norm_k = (RotaryRMSNorm(head_dim, eps=1e-6) for _ in range(2))
        if text_stream:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, inner) for _ in range(3))
            self.norm_added_q, self.norm_added_k = (RotaryRMSNorm(head_dim, eps=1e-6) for _ in range(2))
            self.to_out = nn.ModuleList([nn.Linear(inner, width)])
            self.to_add_out = nn.Linear(inner, width)

    def project(self, x: Tensor, rope: Tensor) -> Projections:
        """(B, N, D) -> normalised and rotated query and key, and value: each (B, N, H, D/H)."""
        query, key, value = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(query, rope), self.norm_k(key, rope), value

    def project_text(self, x: Tensor, rope: Tensor) -> Projections:
        """The same for a text stream with projections of its own."""
        linears = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        query, key, value = (linear(x).unflatten(-1, (self.heads, -1)) for linear in linears)
        return self.norm_added_q(query, rope), self.norm_added_k(key, rope), value


class Modulation(nn.Module):
    """SiLU and a linear layer: condition vectors (B, times, D) -> `count` vectors of that shape. Zero at the start."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, count * width)

    def forward(self, conditions: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(conditions)).chunk(self.count, dim=-1)


def at_times(conditions: Tensor, times: Sequence[int]) -> Tensor:
    """Those of the condition vectors (B, times, D) that some tokens need.

    By slices: indexing would bring the list to the device, and wait for it.
    """
    return torch.cat([conditions[:, time : time + 1] for time in times], dim=1)


@dataclass
class Stream:
    """What one stream of a double-stream block does before and after the one attention.

    Attributes:
        norm, ff: its modulation and MLP.
        project, out: its projections into and out of attention.
        runs: how its tokens are modulated.
    """

    norm: Modulation
    project: Callable[[Tensor, Tensor], Projections]
    out: nn.Module
    ff: nn.Module
    runs: Runs

    def open(self, x: Tensor, conditions: Tensor, rope: Tensor) -> Projections:
        """Tokens (B, N, D) and conditions (B, times, D) -> query, key and value (B, N, H, D/H)."""
        shift, scale, *self.rest = self.norm(at_times(conditions, self.runs.times))
        return self.project(modulated_norm(x, shift, scale, self.runs), rope)

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        """Tokens (B, N, D) and what attention gave them (B, N, H·D/H) -> tokens."""
        gate1, shift2, scale2, gate2 = self.rest
        x = gated_residual(x, self.out(attended), gate1, self.runs)
        return gated_residual(x, self.ff(modulated_norm(x, shift2, scale2, self.runs)), gate2, self.runs)


class DoubleStreamBlock(nn.Module):
    """Video and text each with their own weights, meeting in one attention. Source and target share the video's."""

    def __init__(self, width: int, heads: int, head_dim: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = Modulation(width, 6)
        self.norm1_context = Modulation(width, 6)
        self.attn = Attention(width, heads, head_dim, text_stream=True)
        self.ff = FeedForward(width, inner_dim=int(width * mlp_ratio), activation_fn="gelu-approximate")
        self.ff_context = FeedForward(width, inner_dim=int(width * mlp_ratio), activation_fn="gelu-approximate")

    def streams(self, layout: PackedLayout) -> tuple[Stream, Stream]:
        """The video's and the text's."""
        attn = self.attn
        video = Stream(self.norm1, attn.project, attn.to_out[0], self.ff, layout.split_runs)
        text = Stream(self.norm1_context, attn.project_text, attn.to_add_out, self.ff_context, layout.shared_runs)
        return video, text

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        conditions: Tensor,
        rope: Tensor,
        layout: PackedLayout,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (B, source|target, D), encoder_hidden_states (B, L, D) -> the same two."""
        x, words = hidden_states, encoder_hidden_states
        video, text = self.streams(layout)
        attention = joint_attention(*video.open(x, conditions, rope[: layout.split]), layout)
        attention.attend(*text.open(words, conditions, rope[layout.split :]))
        words = text.close(words, attention.shared())
        return video.close(x, attention.split()), words


class SingleStreamBlock(nn.Module):
    """Video and text through the same weights; attention and MLP side by side on the same normalised input."""

    def __init__(self, width: int, heads: int, head_dim: int, mlp_ratio: float):
        super().__init__()
        self.attn = Attention(width, heads, head_dim, text_stream=False)
        self.norm = Modulation(width, 3)
        self.proj_mlp = nn.Linear(width, int(width * mlp_ratio))
        self.proj_out = nn.Linear(heads * head_dim + int(width * mlp_ratio), width)

    def open(self, x: Tensor, conditions: Tensor, rope: Tensor, runs: Runs) -> tuple[Projections, Tensor, Tensor]:
        """Tokens (B, N, D) -> query, key and value; the normalised tokens, which the MLP takes; the gate."""
        shift, scale, gate = self.norm(conditions)
        normed = modulated_norm(x, shift, scale, runs)
        return self.attn.project(normed, rope), normed, gate

    def close(self, x: Tensor, attended: Tensor, mlp: Tensor, gate: Tensor, runs: Runs) -> Tensor:
        """Tokens, what attention gave them and the MLP's hidden values -> tokens (B, N, D)."""
        return gated_residual(x, self.proj_out(torch.cat([attended, mlp], dim=-1)), gate, runs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        conditions: Tensor,
        rope: Tensor,
        layout: PackedLayout,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (B, source|target, D), encoder_hidden_states (B, L, D) -> the same two."""
        x = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        projections, normed, gate = self.open(x, conditions, rope, layout.runs)
        attention = joint_attention(*projections, layout)
        mlp = self.proj_mlp(normed)  # while processes exchange
        attention.attend()
        mlp = F.gelu(mlp, approximate="tanh")
        x = self.close(x, attention.packed(), mlp, gate, layout.runs)
        return x[:, : layout.split], x[:, layout.split :]


class RefinerAttention(nn.Module):
    """Projections of the text's self-attention."""

    def __init__(self, width: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])


class RefinerBlock(nn.Module):
    """Self-attention among the text tokens, gated by the timestep and the mean of the text."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = RefinerAttention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.ff = FeedForward(width, inner_dim=int(width * mlp_ratio), activation_fn="linear-silu")
        self.norm_out = Modulation(width, 2)

    def forward(self, text: Tensor, temb: Tensor, layout: PackedLayout) -> Tensor:
        gate1, gate2 = self.norm_out(temb)  # of one time, for all tokens
        attn, normed = self.attn, self.norm1(text)
        linears = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (linear(normed).unflatten(-1, (self.heads, -1)) for linear in linears)
        text = text + gate1 * attn.to_out[0](packed_attention(query, key, value, layout).flatten(2))
        return text + gate2 * self.ff(self.norm2(text))


class TokenRefiner(nn.Module):
    """Projects text states to the model's width and refines them (two blocks in the released model)."""

    def __init__(self, text_dim: int, width: int, heads: int, layers: int, mlp_ratio: float):
        super().__init__()
        self.time_text_embed = ConditionEmbedding(width, text_dim, guidance_embeds=False)
        self.proj_in = nn.Linear(text_dim, width)
        self.token_refiner = nn.ModuleDict(
            {"refiner_blocks": nn.ModuleList(RefinerBlock(width, heads, mlp_ratio) for _ in range(layers))}
        )

    def forward(self, text: Tensor, timestep: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """text (B, L, Dt), valid in the first `lengths[i]` tokens; timestep (B,) -> (B, L, D)."""
        counts = to_device(torch.tensor(lengths), text.device)[:, None]
        valid = torch.arange(text.shape[1], device=text.device) < counts
        mean = (text.float() * valid[..., None]).sum(1) / counts
        temb = self.time_text_embed(timestep, mean.to(text.dtype))
        text = self.proj_in(text)
        words = Segment("text", text.shape[1], shared=True)
        layout = pack([words], lengths, text.device, text.dtype)
        for block in self.token_refiner["refiner_blocks"].children():
            text = block(text, temb, layout)
        return text


class PatchEmbed(nn.Module):
    """Latents (B, C, T, h, w) -> tokens (B, N, D), one per patch, row-major in (t, h, w)."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int], bias: bool = True):
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=patch, stride=patch, bias=bias)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)


class TransformerConfig(FrozenDict):
    """The arguments of the transformer, as its `config` has them."""

    in_channels: int
    out_channels: int
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    num_single_layers: int
    num_refiner_layers: int
    mlp_ratio: float
    patch_size: int
    patch_size_t: int
    qk_norm: str
    guidance_embeds: bool
    text_embed_dim: int
    pooled_projection_dim: int
    rope_theta: float
    rope_axes_dim: Sequence[int]


class HunyuanVideoInContextTransformer3DModel(InContextTransformer, ModelMixin):
    """Velocity of the noised target, given the clean source and the instruction (ICVE, methods §1.1–1.2).

    The arguments are diffusers' `HunyuanVideoTransformer3DModel`'s; the defaults are HunyuanVideo's 13B. A freshly
    built model is initialised as a DiT: modulations and the last projection start at zero, so every block starts as
    the identity and the output as zero.

    Args:
        in_channels, out_channels: latent channels.
        num_attention_heads, attention_head_dim: width D is their product.
        num_layers, num_single_layers, num_refiner_layers: double-stream, single-stream and text-refiner blocks.
        mlp_ratio: MLP width over D.
        patch_size, patch_size_t: latent pixels per token along each side, and latent frames per token.
        qk_norm: "rms_norm", the only kind HunyuanVideo has.
        guidance_embeds: whether a guidance value is embedded (distilled checkpoints).
        text_embed_dim, pooled_projection_dim: widths of the text encoders' outputs.
        rope_theta, rope_axes_dim: rotary base, and head channels per (t, h, w) axis; they sum to attention_head_dim.
        masks: take a mask of the region to change: a patch embedding of it, which starts at zero and thus as no change
            of a model without, is added to the tokens of source and target. Without a mask it adds nothing.

    Raises:
        ValueError: rope_axes_dim does not sum to attention_head_dim, or qk_norm is not "rms_norm".
    """

    config: TransformerConfig
    rule: Rule = "full"  # which tokens attend to which, see `icve.models.layout.PackedLayout`
    zero_at_first: ClassVar = ("mask_embedder.proj.weight",)
    _supports_gradient_checkpointing = True
    # diffusers gives these no type but that of their defaults, None and [].
    _skip_layerwise_casting_patterns: ClassVar = ["x_embedder", "context_embedder", "norm"]  # type: ignore[assignment, misc]
    _no_split_modules: ClassVar = ["DoubleStreamBlock", "SingleStreamBlock", "PatchEmbed", "TokenRefiner"]  # type: ignore[assignment, misc]
    _repeated_blocks: ClassVar = ["DoubleStreamBlock", "SingleStreamBlock"]  # type: ignore[misc]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        num_layers: int = 20,
        num_single_layers: int = 40,
        num_refiner_layers: int = 2,
        mlp_ratio: float = 4.0,
        patch_size: int = 2,
        patch_size_t: int = 1,
        qk_norm: str = "rms_norm",
        guidance_embeds: bool = True,
        text_embed_dim: int = 4096,
        pooled_projection_dim: int = 768,
        rope_theta: float = 256.0,
        rope_axes_dim: tuple[int, int, int] = (16, 56, 56),
        masks: bool = False,
    ) -> None:
        super().__init__()
        if sum(rope_axes_dim) != attention_head_dim or any(dim % 2 for dim in rope_axes_dim):
            raise ValueError(f"rope_axes_dim {tuple(rope_axes_dim)} must be even and sum to {attention_head_dim}.")
        if qk_norm != "rms_norm":
            raise ValueError(f"qk_norm must be 'rms_norm', not {qk_norm!r}.")
        if not masks:  # the configuration is then diffusers' own
            self._internal_dict = FrozenDict({name: v for name, v in self.config.items() if name != "masks"})
        heads, head_dim = num_attention_heads, attention_head_dim
        width = heads * head_dim
        self.patch = (patch_size_t, patch_size, patch_size)
        self.takes_masks = masks

        self.x_embedder = PatchEmbed(in_channels, width, self.patch)
        self.mask_embedder = PatchEmbed(1, width, self.patch, bias=False) if masks else None
        self.context_embedder = TokenRefiner(text_embed_dim, width, heads, num_refiner_layers, mlp_ratio)
        self.time_text_embed = ConditionEmbedding(width, pooled_projection_dim, guidance_embeds)
        self.transformer_blocks = nn.ModuleList(
            DoubleStreamBlock(width, heads, head_dim, mlp_ratio) for _ in range(num_layers)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleStreamBlock(width, heads, head_dim, mlp_ratio) for _ in range(num_single_layers)
        )
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, patch_size_t * patch_size**2 * out_channels)
        self.gradient_checkpointing = False
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
                nn.init.zeros_(module.linear.bias)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        if self.mask_embedder is not None:
            nn.init.zeros_(self.mask_embedder.proj.weight)

    def forward(
        self,
        hidden_states: Tensor,
        source_hidden_states: Tensor | None = None,
        reference_hidden_states: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
        referenced: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity ε − x₀ of the target.

        Args:
            hidden_states: (B, C, T, h, w) noised target latents.
            source_hidden_states: (B, C, T', h', w') clean source latents; None is plain text-to-video. Tokens of both
                are numbered from the origin, so equal grids carry equal positions.
            reference_hidden_states: (B, C, 1, h'', w'') clean latents of a picture to take looks from, modulated as the
                source and `REFERENCE_TIME` away from it in time.
            mask: (B, 1, T, h, w), 1 in the region to change and -1 elsewhere, or all 0 as without one; for models with
                `masks`, and with a source of the target's size.
            timestep: (B,) 1000·σ, in 0..1000.
            encoder_hidden_states: (B, L, Dt) text states.
            encoder_attention_mask: (B, L) 1/True on valid tokens, right-padded; None when all are. On the CPU it
                costs no synchronisation.
            pooled_projections: (B, Dp) pooled text.
            guidance: (B,) 1000·guidance, exactly when the configuration has guidance_embeds.
            referenced: (B,) bool, which samples have a reference; None: all. It is read: on the CPU that costs nothing.

        Returns:
            (B, C, T, h, w) in the model's dtype.

        Raises:
            ValueError: a size is no multiple of the patch, a sample has no valid text token, the mask is not
                right-padded, or `guidance` or `mask` does not fit the configuration.
        """
        if (guidance is None) == self.config.guidance_embeds:
            raise ValueError(
                "This checkpoint embeds a guidance value: pass guidance (B,)."
                if self.config.guidance_embeds
                else "This checkpoint has no guidance embedding: pass guidance=None."
            )
        text = encoder_hidden_states
        lengths = (text.shape[1],) * len(text)
        if encoder_attention_mask is not None:
            lengths = valid_text_lengths(encoder_attention_mask)
        text = padded_text(text, max(lengths))
        target = Grid(self.token_grid(hidden_states))
        segments = [Segment("target", target.tokens, rope=target)]
        x = self.x_embedder(hidden_states)
        marks = self.mask_tokens(hidden_states, source_hidden_states, mask)
        if marks is not None:
            x = x + marks
        if source_hidden_states is not None:
            source = Grid(self.token_grid(source_hidden_states))
            segments.insert(0, Segment("source", source.tokens, time="zero", rope=source))
            clean = self.x_embedder(source_hidden_states)
            x = torch.cat([clean if marks is None or clean.shape != marks.shape else clean + marks, x], dim=1)
        if reference_hidden_states is not None:
            grid = Grid(self.token_grid(reference_hidden_states), (REFERENCE_TIME, 0, 0))
            present = None if referenced is None else tuple(referenced.tolist())
            segments.append(Segment("reference", grid.tokens, time="zero", rope=grid, present=present))
            x = torch.cat([x, self.x_embedder(reference_hidden_states)], dim=1)
        # Text has no position: its rotation is 1, so that a packed sequence is rotated without being taken apart.
        segments.append(Segment("text", text.shape[1], shared=True))
        layout = pack(segments, lengths, x.device, x.dtype, self.config.num_attention_heads, self.rule)
        if layout.shards is not None:
            x = layout.shards.take(x, 1)
        rope = layout.rotations(self.config.rope_axes_dim, self.config.rope_theta, x.device)

        conditions = self.time_text_embed(timestep, pooled_projections, guidance, layout.times)
        text = self.context_embedder(text, timestep, lengths)

        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, text = self._gradient_checkpointing_func(block, x, text, conditions, rope, layout)
            else:
                x, text = block(x, text, conditions, rope, layout)

        at = layout.section("target")
        scale, shift = self.norm_out(at_times(conditions, [layout.times.index("target")]))
        x = self.proj_out(modulated_norm(x[:, at], shift, scale, Runs((0,), ((0, at.stop - at.start),))))
        if layout.shards is not None:
            x = layout.shards.gather(x, [segment.name for segment in segments].index("target"))
        return self.unpatchify(x, target.size)

    def arguments(
        self, x: Latents, sigma: Tensor, text: TextCondition, context: Latents, guidance: float
    ) -> dict[str, Any]:
        """x has "video"; the context "source", or nothing; and where it is given "reference", "referenced", "mask"."""
        return {
            "hidden_states": x["video"],
            "source_hidden_states": context.get("source"),
            "reference_hidden_states": context.get("reference"),
            "referenced": context.get("referenced"),
            "mask": context.get("mask"),
            "timestep": 1000.0 * sigma,
            "encoder_hidden_states": text.embeddings,
            "encoder_attention_mask": text.mask,
            "pooled_projections": text.extras["pooled"],
            "guidance": torch.full_like(sigma, guidance) if self.config.guidance_embeds else None,
        }

    def blank_text(self, length: int) -> TextCondition:
        """One text of so many tokens, all zero."""
        pooled = torch.zeros(1, self.config.pooled_projection_dim)
        mask = torch.ones(1, length, dtype=torch.bool, device="cpu")  # it is read
        return TextCondition(torch.zeros(1, length, self.config.text_embed_dim), mask, {"pooled": pooled})

    def named(self, output: Tensor) -> dict[str, Tensor]:
        return {"video": output}

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, N, C·pt·p·p), channels outermost, -> (B, C, T, h, w)."""
        x = tokens.unflatten(1, grid).unflatten(-1, (-1, *self.patch))  # B t h w C pt ph pw
        return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


for _block in (DoubleStreamBlock, SingleStreamBlock):
    TransformerBlockRegistry.register(
        model_class=_block,
        metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
    )
