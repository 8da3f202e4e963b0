"""Edits of validation samples while the model trains."""

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from icve.text.known import KnownTexts
from icve.training.gif import gif_summary
from icve.training.randomness import generator


class EditPreviews(Callback):
    """Moving pictures in TensorBoard: source | edited | target of some validation samples, after each validation.

    Also logs how near, on average, the edits are to the targets and to the sources, as PSNR in dB: an editor that
    collapses leaves the former behind, or copies the source. (Unpaired clips are only as near as their scenes are.)

    The edits use the weights that validation uses (the EMA) and the same noise every time, so that the pictures of
    different steps and runs compare. From a latent cache, source and target are shown as the codec decodes them;
    the text encoder is asked for a negative prompt only.

    Args:
        count: how many samples, from the first validation batches.
        steps: Euler steps, fewer than for a final edit to keep training going; None for the module's sampling default.
        guidance_scale: None for the module's sampling default.
        fps: of the moving pictures.
    """

    def __init__(
        self, count: int = 2, steps: int | None = None, guidance_scale: float | None = None, fps: float = 8.0
    ) -> None:
        if count < 1 or fps <= 0:
            raise ValueError("EditPreviews needs count >= 1 and fps > 0.")
        self.count = count
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.fps = fps
        self._samples: list[dict[str, Any]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], *args: Any
    ) -> None:
        if not trainer.is_global_zero:
            return
        for index in range(min(self.count - len(self._samples), len(batch["source"]))):
            sample = {name: batch[name][index] for name in ("source", "target", "instruction", "id")}
            if "text" in batch:
                sample["texts"] = {
                    sample["instruction"]: (batch["text"][index], batch["pooled"][index]),
                    "": (batch["no_text"], batch["no_pooled"]),
                }
            self._samples.append(sample)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or not self._samples or not loggers:
            return
        pipeline = pl_module.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        # Under a latent cache the codec waits on the host, and the text encoder is not needed at all.
        home = pipeline.codec.device
        pipeline.codec.to(pl_module.device)
        # Numbered like the scalars.
        step = trainer.global_step + getattr(loggers[0], "first_step", 0)
        nearness: dict[str, list[float]] = {"target": [], "source": []}
        for number, sample in enumerate(self._samples):
            pipeline.text_encoder = KnownTexts(sample.get("texts", {}), pl_module.text_encoder)
            videos = {role: sample[role][None] for role in ("source", "target")}
            with trainer.precision_plugin.forward_context():
                cached = videos["source"].dtype != torch.uint8
                latents = videos["source"].float() if cached else pipeline.encode_video(videos["source"])
                edited = pipeline.edit_latents(
                    latents,
                    [sample["instruction"]],
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=generator(0, "preview", 0, sample["id"], "noise"),
                )
                edited = pipeline.decode_latents(edited, "uint8")[0]
                if cached:
                    videos = {role: pipeline.decode_latents(video, "uint8") for role, video in videos.items()}
            for role, values in nearness.items():
                values.append(psnr(edited, videos[role][0]))
            frames = side_by_side([videos["source"][0], edited, videos["target"][0]])
            writer = loggers[0].experiment
            tag = f"previews/{number}"
            # The event-file writer behind the SummaryWriter: its public methods take no ready-made image bytes.
            writer._get_file_writer().add_summary(gif_summary(tag, frames, self.fps), step)
            writer.add_text(f"{tag}/instruction", sample["instruction"], step)
        for role, values in nearness.items():
            pl_module.log(f"val/preview_psnr_{role}", float(np.mean(values)), rank_zero_only=True)
        pipeline.codec.to(home)
        loggers[0].experiment.flush()
        self._samples = []


def psnr(video: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of uint8 videos of one shape; at most 60."""
    error = (video.float() - other.to(video.device).float()).square().mean()
    return float(20 * math.log10(255) - 10 * torch.log10(error.clamp(min=255**2 / 1e6)))


def side_by_side(videos: list[Tensor], least_height: int = 128) -> np.ndarray:
    """uint8 videos (3, F, H, W) of one size, next to each other with dividers: (F, H', W', 3).

    Small ones are enlarged by a whole factor to at least `least_height` pixels, to be seen on a screen.
    """
    factor = max(1, -(-least_height // videos[0].shape[2]))
    videos = [video.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3) for video in videos]
    frames = [video.cpu().permute(1, 2, 3, 0).numpy() for video in videos]
    divider = np.full((*frames[0].shape[:2], 4, 3), 255, dtype=np.uint8)
    columns = [column for video in frames for column in (divider, video)][1:]
    return np.concatenate(columns, axis=2)
