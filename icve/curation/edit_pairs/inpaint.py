"""Inpaint: VACE draws the caption where the mask is, and the clip has its edited version (ICVE, paired data)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np

from icve.curation.edit_pairs.frames import clip_of
from icve.curation.edit_pairs.model_folders import model_folder
from icve.curation.stage import Outcome, Row, Stage, Workspace
from icve.data.masks import load_mask
from icve.data.media.video import VideoError, write_video

if TYPE_CHECKING:
    from icve.curation.edit_pairs.vace import Vace

CRF = 10  # artefacts well below the grain of the source
NEGATIVE_PROMPT = (
    "blurry, smeared, flickering, frozen, overexposed, washed out, compression artefacts, distorted anatomy, "
    "extra limbs, deformed hands, black patches, silhouettes, subtitles, logos, watermarks"
)


def soft_edge(mask: np.ndarray, width: float) -> np.ndarray:
    """Weight (F, H, W) float32 of what is drawn: 0 outside the mask (F, H, W) bool, 1 from `width` pixels inside on.

    The ramp lies inside the mask, whose rim is background since masks are dilated: outside, the source stays exact.
    """
    # The frame's border is no edge of the mask; a frame masked all over has no edge at all, and huge distances to it.
    inside = np.pad(mask.astype(np.uint8), ((0, 0), (1, 1), (1, 1)), mode="edge")
    depth = [cv2.distanceTransform(frame, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1] for frame in inside]
    return np.minimum(np.stack(depth) / (width + 1), 1)


def paste(source: np.ndarray, drawn: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`drawn` over `source`, both (F, H, W, 3) uint8, by a weight (F, H, W) in 0..1."""
    result = source.copy()
    for out, new, share in zip(result, drawn, weight, strict=True):
        change = share[..., None] * (new.astype(np.float32) - out)
        out[:] = np.rint(out + change).astype(np.uint8)
    return result


class Inpaint(Stage):
    """Writes the clip with the caption drawn into its mask.

    Reads `source_path`, `mask_path`, `caption` and `fps`; writes `targets/<key>.mp4` and `target_path`, `target_start`
    (0), `target_frames` and `source_frames`. The noise depends on the row's key and the seed.

    Args:
        model: folder of a VACE pipeline in diffusers' format. Its scheduler is used as it is configured there.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 or less computes one branch only.
        negative_prompt: what guidance leads away from.
        paste: put what was drawn into the source, with a soft edge. The rest is then the source's own pixels, as an
            editor should learn to leave it; but a shadow or reflection outside the mask stays, and a tint of what was
            drawn may show at the edge. Without, the model's whole picture is taken: no seam, but all of it went
            through the model's codec, which softens everything.
        edge: width of that edge in pixels where the shorter side has 480, inside the mask. Keep it below the margin
            that masks were dilated by.
        seed: of the noise.
        timeout: most seconds per clip.

    Raises:
        ValueError: the folder holds no pipeline, or a number is out of range.
    """

    needs = "gpu"
    incidental: ClassVar[frozenset[str]] = frozenset({"timeout"})

    def __init__(
        self,
        model: str,
        steps: int = 50,
        guidance: float = 5.0,
        negative_prompt: str = NEGATIVE_PROMPT,
        paste: bool = True,
        edge: float = 8.0,
        seed: int = 0,
        timeout: float = 3600.0,
    ) -> None:
        if steps < 1 or edge < 0 or timeout <= 0:
            raise ValueError("Inpaint needs at least 1 step, an edge of at least 0 pixels and a timeout above 0.")
        self.folder = model_folder(model, "model_index.json")
        self.steps, self.guidance, self.negative_prompt = steps, guidance, negative_prompt
        self.paste, self.edge, self.seed, self.timeout = paste, edge, seed, timeout
        self.vace: Vace  # read by `setup`

    def setup(self) -> None:
        from icve.curation.edit_pairs.vace import Vace

        self.vace = Vace(self.folder, self.steps, self.guidance, self.negative_prompt)

    def seconds(self, row: Row) -> float:
        return self.timeout

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        return [self._inpaint(row, work) for row in rows]

    def _inpaint(self, row: Row, work: Workspace) -> Row:
        clip, mask = clip_of(row, work), load_mask(work.file(row, "mask_path"))
        source = clip.read()
        if mask.shape != source.shape[:3]:
            raise VideoError(clip.file, f"its clip has the shape {source.shape[:3]}, its mask {mask.shape}.")
        file = work.output / "targets" / f"{row['key']}.mp4"
        frames = dict.fromkeys(("target_frames", "source_frames"), len(source))
        columns = {"target_path": work.name(file), "target_start": 0, **frames}
        target = self.vace(source, mask, row["caption"], int(self.random(row, self.seed).integers(2**63)))
        if self.paste:
            target = paste(source, target, soft_edge(mask, self.edge * min(mask.shape[1:]) / 480))
        write_video(file, target, row["fps"], crf=CRF)
        return {**row, **columns}
