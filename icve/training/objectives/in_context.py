"""In-context editing (ICVE; methods, sections 1.1 and 1.2): denoise the target beside the clean source.

Shapes: B samples, C latent channels, T latent frames of h x w.
z_source, x0  clean latents of source and target (B, C, T, h, w)      sigma  noise level in (0, 1) (B,)
x_t           noised target (B, C, T, h, w)                           noise  standard normal, as x0
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from icve.data.edit_batch import EditBatch
from icve.data.edit_region import region_from_latents, region_from_mask, region_weight, shown_mask
from icve.flow import Prediction, TimestepDensity, flow_loss, interpolate
from icve.models.denoiser import Denoiser
from icve.runtime.transfers import to_device
from icve.training.objectives.objective import Losses, Objective
from icve.training.randomness import Draws

VALIDATION_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class InContext(Objective):
    """Predict the flow from noise to the edited video, given the source video and the text.

    Args:
        predicts: "velocity" or "epsilon".
        density: law of the noise level.
        instruction_dropout: share of samples whose instruction is replaced by "", for classifier-free guidance; the
            source is never dropped.
        guidance: value embedded in models with a guidance embedding, already times 1000.
        edit_weight: loss weight inside the edited region (1 outside); 1 weighs all latents equally.
        pixel_weight: exponent of each latent channel's share in the pixels as its loss weight: 0 weighs all channels
            alike, 2 as the pixels' squared error does. Needs a codec that knows its `channel_rms`.
        edit_threshold: without a mask in the batch, the region is where source and target latents differ by more.
        mask_dropout: share of samples whose mask is not shown to a transformer that takes masks, so that it edits
            without one as well; the loss weighs its region all the same.
        reference_dropout: share of samples whose reference is not shown.
        stratified: the noise levels of a step are spread evenly over the law, one in each of as many equal shares of it
            as the global batch has samples; which sample has which share is drawn. Else each is drawn by itself.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        predicts: Prediction = "velocity",
        density: TimestepDensity = TimestepDensity(),  # noqa: B008 (frozen)
        instruction_dropout: float = 0.1,
        guidance: float = 1000.0,
        edit_weight: float = 1.0,
        pixel_weight: float = 0.0,
        edit_threshold: float = 0.1,
        stratified: bool = False,
        mask_dropout: float = 0.3,
        reference_dropout: float = 0.1,
    ) -> None:
        dropouts = {"instruction": instruction_dropout, "mask": mask_dropout, "reference": reference_dropout}
        for name, share in dropouts.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name}_dropout must be in [0, 1], got {share}.")
        if edit_weight <= 0:
            raise ValueError(f"edit_weight must be positive, got {edit_weight}.")
        self.predicts = predicts
        self.density, self.stratified = density, stratified
        self.shift_tokens = density.shift_tokens
        self.instruction_dropout = instruction_dropout
        self.mask_dropout, self.reference_dropout = mask_dropout, reference_dropout
        self.guidance = guidance
        self.edit_weight = edit_weight
        self.pixel_weight = pixel_weight
        self.edit_threshold = edit_threshold
        self._codec: nn.Module | None = None

    def use(self, frozen: Mapping[str, nn.Module]) -> None:
        """Raises ValueError where pixel_weight is to be used and the codec has no channel_rms."""
        self._codec = frozen.get("codec")
        # Asked of the class: a codec with weights would read them now to measure it.
        if self.pixel_weight and not hasattr(type(self._codec), "channel_rms"):
            raise ValueError(
                f"pixel_weight needs a codec with channel_rms, which {type(self._codec).__name__} has not: use 0."
            )

    def instructions(self, batch: EditBatch, draws: Draws) -> list[str]:
        """Every sample's instruction, "" where it is dropped."""
        chances = draws.uniform("instruction dropout")
        return [
            "" if chance < self.instruction_dropout else words
            for words, chance in zip(batch["instruction"], chances, strict=True)
        ]

    def loss(self, denoiser: Denoiser, batch: EditBatch, draws: Draws) -> Losses:
        """|v - (noise - x0)|^2 at a drawn noise level (Eq. 3)."""
        z_source, x0, text = batch["source"], batch["target"], batch["condition"]
        context = self.context(denoiser, batch, draws)
        law = self.density.at(_tokens(denoiser, x0))
        chances = draws.stratified("sigma") if self.stratified else draws.uniform("sigma", torch.float64)
        sigma = to_device(torch.tensor([law.level(chance) for chance in chances]), x0.device)
        noise = draws.normal("noise", x0)
        x_t = {"video": interpolate(x0, noise, sigma)}  # (1 - sigma) x0 + sigma noise
        prediction = denoiser.denoise(x_t, sigma, text, context, self.guidance)["video"]
        weight = self.loss_weight(batch.get("mask"), z_source, x0, batch.get("region"))
        losses = flow_loss(prediction, x0, noise, sigma, self.predicts, weight)
        return Losses(losses, denoiser.tokens(x_t, text, context))

    def held_out(self, denoiser: Denoiser, batch: EditBatch, draws: Draws) -> Losses:
        """Losses at fixed noise levels, all latents alike; their mean as training's law weighs the levels, and "plain".

        A level stands for those that are nearest to it: its weight is their share in training, for targets of this
        size. "plain" weighs all levels alike, whatever the law.
        """
        x0, levels = batch["target"], []
        context = self.context(denoiser, batch)
        for level in VALIDATION_SIGMAS:
            noise = draws.normal(f"noise at {level}", x0)
            sigma = torch.full((len(x0),), level, device=x0.device)
            x_t = {"video": interpolate(x0, noise, sigma)}
            prediction = denoiser.denoise(x_t, sigma, batch["condition"], context, self.guidance)["video"]
            levels.append(flow_loss(prediction, x0, noise, sigma, self.predicts))
        shares = self.density.at(_tokens(denoiser, x0)).shares(VALIDATION_SIGMAS)
        weighted = sum(share * losses for share, losses in zip(shares, levels, strict=True))
        parts = {f"sigma_{level}": losses for level, losses in zip(VALIDATION_SIGMAS, levels, strict=True)}
        return Losses(torch.as_tensor(weighted), parts=parts | {"plain": torch.stack(levels).mean(0)})

    def context(self, denoiser: Denoiser, batch: EditBatch, draws: Draws | None = None) -> dict[str, Tensor]:
        """Clean latents that the transformer sees of a batch, as `icve.models.denoiser.Latents`.

        Args:
            draws: say which samples' masks and references are dropped; None drops none.
        """
        context, samples = {"source": batch["source"]}, len(batch["source"])

        def kept(what: str, share: float) -> Tensor:
            chances = [1.0] * samples if draws is None else draws.uniform(f"{what} dropout")
            return torch.tensor(chances, device="cpu") >= share

        region = self._region(batch) if getattr(denoiser.transformer, "takes_masks", False) else None
        if region is not None and batch["source"].shape == batch["target"].shape:
            shown = to_device(kept("mask", self.mask_dropout), region.device)
            context["mask"] = shown_mask(region) * shown[:, None, None, None, None]
        if "reference" in batch:
            context["reference"] = batch["reference"]
            context["referenced"] = kept("reference", self.reference_dropout) & torch.tensor(
                batch["referenced"], device="cpu"
            )
        return context

    @staticmethod
    def _region(batch: EditBatch) -> Tensor | None:
        """The mask on the latent grid (B, 1, T, h, w), None where the batch has none."""
        if "region" in batch or "mask" not in batch:
            return batch.get("region")
        T, h, w = batch["target"].shape[2:]
        return region_from_mask(batch["mask"], (T, h, w))

    def loss_weight(
        self, mask: Tensor | None, z_source: Tensor, x0: Tensor, region: Tensor | None = None
    ) -> Tensor | None:
        """Loss weights that broadcast to (B, C, T, h, w), or None when every latent counts the same.

        Args:
            mask: edit mask in pixels (B, 1, F, H, W).
            region: the same on the latent grid (B, 1, T, h, w), from a cache.
        """
        weight = None
        if self.pixel_weight:
            assert self._codec is not None  # as `use` has seen
            rms: Tensor = self._codec.channel_rms  # type: ignore[assignment]  # an attribute of codecs
            weight = rms.to(x0.device).reshape(1, -1, 1, 1, 1) ** self.pixel_weight
        if self.edit_weight == 1.0:
            return weight
        if region is None and mask is not None:
            region = region_from_mask(mask, (x0.shape[2], x0.shape[3], x0.shape[4]))
        elif region is None and z_source.shape == x0.shape:
            region = region_from_latents(z_source, x0, self.edit_threshold)
        elif region is None:
            return weight
        region = region_weight(region, self.edit_weight)
        return region if weight is None else region * weight


def _tokens(denoiser: Denoiser, x0: Tensor) -> int:
    """Of one target."""
    return math.prod(x0.shape[2:]) // math.prod(denoiser.transformer.patch)
