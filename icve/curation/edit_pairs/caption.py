"""MaskedCaption: what an inpainting model is told to show where a thing was masked out (ICVE, paired data)."""

from __future__ import annotations

import re

import numpy as np

from icve.curation.annotate.asking import AskingStage
from icve.curation.edit_pairs.frames import clip_of, spread
from icve.curation.edit_pairs.requests import EDITS
from icve.curation.stage import Outcome, Rejected, Row, Workspace
from icve.curation.vision_language import Question, VisionLanguageModel
from icve.data.masks import load_mask
from icve.data.media.video import VideoError

LEAST_WORDS, MOST_WORDS = 6, 100

PROMPT = f"""These pictures are moments of one video, in order. A part of each is blacked out.
{{request}}
Write one paragraph of {LEAST_WORDS} to 80 words that describes the finished video as if nothing had ever been hidden:
what is seen, where, how it looks and moves, the light. Do not speak of black areas, masks, pictures, frames, images,
videos or editing. Answer with the paragraph alone."""

# Of the pictures instead of the scene; "a picture on the wall" and "a masked man" are of the scene.
_META = re.compile(
    r"\b(blacked[- ]out|black (area|region|part|patch|shape|silhouette)s?|mask(ed)? (area|region|part)s?"
    r"|(the|these|this|each|every) (video|image|picture|frame|mask)s?|inpaint\w*|edit(ed|ing))\b",
    re.IGNORECASE,
)


def check_caption(text: str, unnamed: str | None = None) -> str | None:
    """What is wrong with a caption, in a sentence for the model, or None; `unnamed` is a phrase it must not contain."""
    words = len(text.split())
    if not LEAST_WORDS <= words <= MOST_WORDS:
        return f"Write {LEAST_WORDS} to 80 words, not {words}."
    if found := _META.search(text):
        return f"Describe the scene itself, without the words {found.group()!r}."
    if unnamed and re.search(rf"\b{re.escape(unnamed)}\b", text, re.IGNORECASE):
        return f"Do not mention {unnamed!r}: describe the scene without it."
    return None


class MaskedCaption(AskingStage):
    """A model sees the clip with the masked region black and describes the scene as the edit would leave it.

    Reads `source_path`, `mask_path`, `object` and `edit_type`; writes `caption`. Without a usable answer a row is
    rejected as "no caption".

    Args:
        model: the vision-language model; it sees `frames` pictures.
        frames: pictures shown, spread evenly over the clip.
        batch_size: clips per call of the model.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, model: VisionLanguageModel, frames: int = 3, batch_size: int = 8) -> None:
        if min(frames, batch_size) < 1:
            raise ValueError("MaskedCaption needs at least 1 frame and 1 row per batch.")
        super().__init__(model, batch_size)
        self.frames = frames

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        answers = self.ask([self._question(row, work) for row in rows], work)
        return [
            Rejected("no caption", answer.error, answer.transient)
            if answer.text is None
            else {**row, "caption": " ".join(answer.text.split())}
            for row, answer in zip(rows, answers, strict=True)
        ]

    def _question(self, row: Row, work: Workspace) -> Question:
        edit, phrase = EDITS[row["edit_type"]], row["object"]
        unnamed = None if edit.names_object else phrase
        return Question(
            PROMPT.format(request=edit.request.format(object=phrase)),
            tuple(self._blackened(row, work)),
            lambda text: check_caption(text, unnamed),
        )

    def _blackened(self, row: Row, work: Workspace) -> np.ndarray:
        clip, mask_FHW = clip_of(row, work), load_mask(work.file(row, "mask_path"))
        if len(mask_FHW) != clip.frames:
            raise VideoError(clip.file, f"its clip has {clip.frames} frames, its mask {len(mask_FHW)}.")
        numbers = spread(clip.frames, self.frames)
        frames = clip.read(numbers)
        frames[mask_FHW[numbers]] = 0
        return frames
