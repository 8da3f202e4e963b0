"""Where in a picture a phrase points to: Grounding DINO through transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor


class PhraseDetector:
    """The box in a picture that a phrase describes best.

    Computes in float32 also on a GPU: the model is small and looks at a few frames of a clip.

    Args:
        folder: of a Grounding DINO model and its processor, as published for transformers.
        device: where to compute.

    Raises:
        OSError, ValueError: the folder holds no such model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self.model, self.device = model.to(device).eval(), device

    @torch.inference_mode()
    def find(self, frame: np.ndarray, phrase: str) -> tuple[np.ndarray, float]:
        """The best box for a phrase in a frame (H, W, 3) uint8; whether its score is enough, the caller decides.

        Returns:
            Box (4,) float32, left, top, right, bottom in pixels, inside the picture; score in 0..1.
        """
        # Lower case and a full stop: what the model was trained on.
        inputs = self.processor(images=frame, text=f"{phrase.lower()}.", return_tensors="pt").to(self.device)
        output = self.model(**inputs)
        score, best = output.logits[0].sigmoid().amax(dim=-1).max(dim=0)
        x, y, width, height = output.pred_boxes[0, best].clamp(0, 1).tolist()  # centre and size, of the picture's
        corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2], np.float32).clip(0, 1)
        return corners * np.tile(frame.shape[1::-1], 2).astype(np.float32), float(score)
