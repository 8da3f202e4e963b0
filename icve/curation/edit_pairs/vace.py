"""VACE, which draws a description into the masked part of a video, through diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import WanVACEPipeline
from torch import Tensor

GREY = 0.5  # what VACE was trained to find where it is to draw
TEXT_TOKENS = 512


class Vace:
    """A VACE pipeline, on the GPU in bfloat16 with the codec in float32 as released, or on the CPU in float32.

    Args:
        folder: in diffusers' format.
        steps: denoising steps.
        guidance: classifier-free guidance.
        negative_prompt: what guidance leads away from.

    Raises:
        OSError, ValueError: the folder holds no such pipeline.
    """

    def __init__(self, folder: Path, steps: int, guidance: float, negative_prompt: str) -> None:
        on_gpu = torch.cuda.is_available()
        dtypes = {"default": torch.bfloat16, "vae": torch.float32} if on_gpu else torch.float32
        self.pipeline = WanVACEPipeline.from_pretrained(
            folder, torch_dtype=dtypes, local_files_only=True, use_safetensors=True
        ).to("cuda" if on_gpu else "cpu")
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.guidance = steps, guidance
        self.negative = self.embed(negative_prompt) if guidance > 1 else None

    @torch.inference_mode()
    def embed(self, text: str) -> Tensor:
        """Text as the pipeline embeds it, (1, TEXT_TOKENS, D), zero behind its end.

        The pipeline's own way needs the package ftfy, to mend text that was decoded wrongly, which this text was not.
        """
        tokens = self.pipeline.tokenizer(
            " ".join(text.split()), padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(self.pipeline.text_encoder.device)
        states_BLD = self.pipeline.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states_BLD * tokens.attention_mask[..., None].to(states_BLD.dtype)

    @torch.inference_mode()
    def __call__(self, video: np.ndarray, mask: np.ndarray, caption: str, seed: int) -> np.ndarray:
        """The video as the model draws it: the caption inside the mask, the video through its codec outside.

        Args:
            video: (F, H, W, 3) uint8; lengths and sizes the model does not take are extended at the end and cut again.
            mask: (F, H, W) bool.
            caption: what the finished video shows.
            seed: of the noise, which is the same on every device.

        Returns:
            (F, H, W, 3) uint8.
        """
        frames, height, width = mask.shape
        video, mask = self._extend(video), self._extend(mask)
        masked = np.where(mask[..., None], np.float32(GREY), video.astype(np.float32) / 255)
        drawn = self.pipeline(
            video=masked[None],
            mask=mask[None, ..., None].astype(np.float32),
            prompt_embeds=self.embed(caption),
            negative_prompt_embeds=self.negative,
            height=mask.shape[1],
            width=mask.shape[2],
            num_frames=len(mask),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).frames[0][:frames, :height, :width]
        return np.rint(drawn * 255).clip(0, 255).astype(np.uint8)

    def _extend(self, array: np.ndarray) -> np.ndarray:
        """(F, H, W, ...) made longer and larger, edges repeated: F = 4k + 1, H and W multiples of a latent patch."""
        time, space = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        _, tall, wide = self.pipeline.transformer.config.patch_size
        frames, height, width = array.shape[:3]
        more = [(0, (1 - frames) % time), (0, -height % (space * tall)), (0, -width % (space * wide))]
        return np.pad(array, more + [(0, 0)] * (array.ndim - 3), mode="edge")
