"""Edits of validation samples while the model trains."""

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from icve.data.edit_region import region_from_mask
from icve.data.share import data_share
from icve.models.known_texts import KnownTexts
from icve.training.callbacks.gif import gif_summary
from icve.training.lightning_types import EditingModule, editing
from icve.training.randomness import generator


class EditPreviews(Callback):
    """Moving pictures in TensorBoard: source | edited | target of some validation samples, after each validation.

    Also logs how near, on average, the edits are to the targets and to the sources, as PSNR in dB: an editor that
    collapses leaves the former behind, or copies the source. (Unpaired clips are only as near as their scenes are.)

    The edits use the weights that validation uses (the EMA) and the same noise every time, so that the pictures of
    different steps and runs compare. From a latent cache, source and target are shown as the codec decodes them;
    the text encoder is asked for a negative prompt only.

    Every process makes every edit, because the transformer may be spread over all of them; the first one writes.

    Args:
        count: how many samples: the first of the validation set, whichever processes load them.
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
        missing = self.count - len(self._samples)
        if missing and tensorboards(trainer) and not trainer.sanity_checking:
            self._samples += first_of_all(preview_samples(batch, missing), missing, trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._samples:
            return
        logger = tensorboards(trainer)[0]
        module = editing(pl_module)
        pipeline = module.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        # Under a latent cache the codec waits on the host, and the text encoder is not needed at all.
        home = pipeline.codec.device
        pipeline.codec.to(pl_module.device)
        # Numbered like the scalars.
        step = trainer.global_step + getattr(logger, "first_step", 0)
        nearness: dict[str, list[float]] = {"target": [], "source": []}
        for number, sample in enumerate(self._samples):
            pipeline.text_encoder = KnownTexts(sample.get("texts", {}), module.text_encoder)
            videos = {role: sample[role][None].to(pl_module.device) for role in ("source", "target")}
            with trainer.precision_plugin.forward_context():
                cached = videos["source"].dtype != torch.uint8
                latents = module.encode_videos(videos["source"])[0]
                edited = module.objective.edit(
                    pipeline,
                    latents,
                    [sample["instruction"]],
                    **preview_conditions(sample, module, latents),
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=generator(0, "preview", 0, sample["id"], "noise"),
                )
                edited = pipeline.decode_latents(edited, "uint8")[0]
                if cached:
                    videos = {role: pipeline.decode_latents(video, "uint8") for role, video in videos.items()}
            for role, values in nearness.items():
                values.append(psnr(edited, videos[role][0]))
            if trainer.is_global_zero:
                frames = side_by_side([videos["source"][0], edited, videos["target"][0]])
                tag = f"previews/{number}"
                # The event-file writer behind the SummaryWriter: its public methods take no ready-made image bytes.
                logger.experiment._get_file_writer().add_summary(gif_summary(tag, frames, self.fps), step)
                logger.experiment.add_text(f"{tag}/instruction", sample["instruction"], step)
        for role, values in nearness.items():
            pl_module.log(f"val/preview_psnr_{role}", float(np.mean(values)), sync_dist=True)
        pipeline.codec.to(home)
        if trainer.is_global_zero:
            logger.experiment.flush()
        self._samples = []


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The trainer's loggers that show moving pictures."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def preview_samples(batch: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """What previews need of the first samples of a validation batch that are counted, on the host.

    Returns:
        source and target without B, instruction, id, what the batch has of mask, region, reference and referenced, and
        with cached texts their embeddings (`texts`).
    """

    def on_host(value: Any) -> Any:
        # A copy: of a view, the whole batch would be kept and sent.
        return value.to("cpu", copy=True) if isinstance(value, Tensor) else value

    counted = batch.get("counted", [True] * len(batch["id"]))
    found = []
    for index in [index for index, counts in enumerate(counted) if counts][:most]:
        names = ("source", "target", "instruction", "id", "mask", "region", "reference", "referenced")
        sample = {name: on_host(batch[name][index]) for name in names if name in batch}
        if "text" in batch:
            texts = {sample["instruction"]: batch["text"][index], "": batch["no_text"]}
            sample["texts"] = {words: text.to("cpu") for words, text in texts.items()}
        found.append(sample)
    return found


def preview_conditions(sample: dict[str, Any], module: EditingModule, source: Tensor) -> dict[str, Tensor]:
    """Arguments of `EditPipeline.edit_latents` for a sample's mask and reference, where the model takes them."""
    given = {}
    if getattr(module.transformer, "takes_masks", False) and ("mask" in sample or "region" in sample):
        T, h, w = source.shape[2:]
        known = sample.get("region")
        given["mask"] = region_from_mask(sample["mask"][None], (T, h, w)) if known is None else known[None]
    if sample.get("referenced"):
        given["reference"] = module.encode_videos(sample["reference"][None].to(source.device))[0]
    return given


def first_of_all(own: list[Any], most: int, trainer: Trainer, pl_module: LightningModule) -> list[Any]:
    """The first of the samples that the processes loaded of one batch, in its order; called by all of them at once."""
    group, _ = data_share(trainer)
    loaded = torch.tensor([group, len(own)], device=pl_module.device)
    # Any process of a group can send for it: they load the same samples.
    table = enumerate(torch.as_tensor(pl_module.all_gather(loaded)).reshape(-1, 2).tolist())
    senders = {group: rank for rank, (group, count) in table if count}
    found: list[Any] = []
    for _, rank in sorted(senders.items()):
        if len(found) < most:
            found += trainer.strategy.broadcast(own, rank)
    return found[:most]


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
