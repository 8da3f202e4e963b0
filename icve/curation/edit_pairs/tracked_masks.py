"""Masks: what a phrase names, cut out of every frame of a clip (ICVE, paired data: Grounded-SAM 2)."""

from __future__ import annotations

from icve.curation.edit_pairs.frames import clip_of, spread
from icve.curation.edit_pairs.model_folders import model_folder
from icve.curation.stage import Outcome, Rejected, Row, Stage, Workspace
from icve.data.masks import save_mask


class Masks(Stage):
    """Grounding DINO finds the phrase on a few frames; SAM 2 follows the best of these boxes through the clip.

    Reads `source_path` and `object`; writes `masks/<key>.npz` (as `icve.data.masks.save_mask`), `mask_path` and
    `mask_score` (the detector's, 0..1). A phrase found on none of the frames is rejected as "object not found".

    Args:
        detector: folder of a Grounding DINO model.
        segmenter: folder of a SAM 2 video model.
        min_score: least score of a box. Higher drops more clips, lower lets wrong things through.
        prompt_frames: frames searched, spread evenly over the clip.

    Raises:
        ValueError: a folder holds no model, or a number is out of range.
    """

    needs = "gpu"

    def __init__(self, detector: str, segmenter: str, min_score: float = 0.35, prompt_frames: int = 3) -> None:
        if not 0 <= min_score <= 1 or prompt_frames < 1:
            raise ValueError("Masks needs min_score in 0..1 and at least 1 prompt frame.")
        self.folders = model_folder(detector), model_folder(segmenter)
        self.min_score, self.prompt_frames = min_score, prompt_frames

    def setup(self) -> None:
        import torch

        from icve.curation.edit_pairs.detector import PhraseDetector
        from icve.curation.edit_pairs.tracker import MaskTracker

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.detector = PhraseDetector(self.folders[0], device)
        self.tracker = MaskTracker(self.folders[1], device)

    def seconds(self, row: Row) -> float:
        return 900.0  # a clip of 125 frames on the CPU

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        return [self._mask(row, work) for row in rows]

    def _mask(self, row: Row, work: Workspace) -> Outcome:
        frames, phrase = clip_of(row, work).read(), row["object"]
        numbers = spread(len(frames), self.prompt_frames)
        found = {int(number): self.detector.find(frames[number], phrase) for number in numbers}
        number, (box, score) = max(found.items(), key=lambda item: item[1][1])
        if score < self.min_score:
            return Rejected("object not found", f"{phrase!r} scores {score:.2f}, at least {self.min_score} wanted")
        file = work.output / "masks" / f"{row['key']}.npz"
        columns = {"mask_path": work.name(file), "mask_score": round(score, 4)}
        save_mask(file, self.tracker.track(frames, number, box))
        return {**row, **columns}
