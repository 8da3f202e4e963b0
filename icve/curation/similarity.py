"""How much two clips differ: too little leaves nothing to instruct, too much is no edit of the same scene."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from icve.curation.measure import read_signals
from icve.curation.stage import Rejected, Row, RowStage, Workspace
from icve.data.media.video import read_frames

_LOW = 8  # rows and columns of the cosine transform that make the hash


class SimilarityBand(RowStage):
    """Keeps pairs whose clips differ neither too little nor too much, by colour histogram and DCT hash of a few frames.

    Reads ``signals`` and the clips' starts and lengths, which must be of one video. Adds ``change``, 0 (the same
    pictures, in whatever order) to 1 (nothing in common).

    Args:
        min_change: least change; below, the clips are near-duplicates.
        max_change: most change.
    """

    def __init__(self, min_change: float = 0.03, max_change: float = 0.45) -> None:
        if not 0 <= min_change < max_change:
            raise ValueError(f"0 <= min_change < max_change is wanted, not {min_change} and {max_change}.")
        self.min_change, self.max_change = min_change, max_change

    def outcome(self, row: Row, work: Workspace) -> Row | Rejected:
        change = clip_distance(self.distances(row, work))
        if change < self.min_change:
            return Rejected("clips too alike", f"change {change:.3f}, at least {self.min_change:g} wanted")
        if change > self.max_change:
            return Rejected("clips too different", f"change {change:.3f}, at most {self.max_change:g} wanted")
        return row | {"change": change}

    def distances(self, row: Row, work: Workspace) -> np.ndarray:
        """Distance of every frame looked at of the source (rows) to every one of the target (columns), 0..1."""
        numbers, histograms, pictures = read_signals(work, row, "sample_frames", "histogram", "picture")
        of_source, of_target = (_within(numbers, row, role) for role in ("source", "target"))
        # Hellinger distance of the histograms, Hamming distance of the hashes
        overlap = np.sqrt(histograms[of_source]) @ np.sqrt(histograms[of_target]).T
        colour = np.sqrt(np.clip(1 - overlap, 0, 1))
        source, target = (np.array([dct_hash(pictures[i]) for i in chosen]) for chosen in (of_source, of_target))
        shape = (source[:, None] != target[None]).mean(-1)
        return (colour + shape) / 2


class CLIPSimilarityBand(SimilarityBand):
    """Keeps pairs whose clips differ neither too little nor too much, by CLIP's image embeddings of a few frames.

    Reads the ``source_*`` and ``target_*`` columns; decodes the frames it looks at. Adds ``change``, one minus the
    cosine of the embeddings, 0 to 2.

    Args:
        model: folder of a CLIP model with its image processor, as transformers saves them; safetensors only.
        min_change: least change.
        max_change: most change.
        samples: frames looked at of each clip, spread evenly.
        device: where the model runs; None takes a CUDA device if there is one.
    """

    needs = "gpu"
    incidental = frozenset({"device"})

    def __init__(
        self,
        model: str,
        min_change: float = 0.02,
        max_change: float = 0.35,
        samples: int = 4,
        device: str | None = None,
    ) -> None:
        super().__init__(min_change, max_change)
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}.")
        if not Path(model, "config.json").is_file():
            raise ValueError(f"'{model}' is not a folder with a CLIP model: it has no config.json.")
        self.model, self.samples, self.device = model, samples, device

    def setup(self) -> None:
        import torch
        from transformers import CLIPImageProcessor, CLIPModel

        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        clip = CLIPModel.from_pretrained(self.model, use_safetensors=True, local_files_only=True)
        self.clip = clip.to(self.device).eval()  # type: ignore[arg-type]  # transformers' decorator loses `self`
        self.processor = CLIPImageProcessor.from_pretrained(self.model, local_files_only=True)

    def distances(self, row: Row, work: Workspace) -> np.ndarray:
        source, target = (self._embed(row, role, work) for role in ("source", "target"))
        return 1 - source @ target.T

    def _embed(self, row: Row, role: str, work: Workspace) -> np.ndarray:
        """Embeddings (samples, D) of unit length."""
        import torch

        start, count = row[f"{role}_start"], row[f"{role}_frames"]
        numbers = np.unique(np.linspace(start, start + count - 1, self.samples).round().astype(int))
        frames = read_frames(work.file(row, f"{role}_path"), numbers)
        pixels = self.processor(list(frames), return_tensors="pt")["pixel_values"].to(self.device)
        with torch.inference_mode():
            seen = self.clip.vision_model(pixel_values=pixels).pooler_output
            return torch.nn.functional.normalize(self.clip.visual_projection(seen), dim=-1).float().cpu().numpy()


def clip_distance(distances: np.ndarray) -> float:
    """How far two clips are apart by the distances of their frames: each frame counts with its nearest of the other.

    Clips are taken from their own timelines, so that frame k of one has nothing to do with frame k of the other.
    """
    return float((distances.min(1).mean() + distances.min(0).mean()) / 2)


def dct_hash(picture: np.ndarray) -> np.ndarray:
    """Perceptual hash of a grey picture (n, n) uint8, n of 8 at least: bool (63,).

    Whether each of the lowest frequencies of its cosine transform is above their median; the mean is left out.
    """
    low = cv2.dct(picture.astype(np.float32))[:_LOW, :_LOW].ravel()[1:]
    return low > np.median(low)


def _within(numbers: np.ndarray, row: Row, role: str) -> np.ndarray:
    """Positions of the samples that lie in a clip, or of the nearest where it is shorter than their distance."""
    start, count = row[f"{role}_start"], row[f"{role}_frames"]
    inside = np.flatnonzero((numbers >= start) & (numbers < start + count))
    return inside if len(inside) else np.abs(numbers - (start + count / 2)).argmin(keepdims=True)
