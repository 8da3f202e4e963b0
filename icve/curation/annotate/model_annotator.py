"""Instructions for pairs of clips, written by a vision-language model (ICVE, unpaired clip data and edited pairs)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icve.curation.annotate.asking import AskingStage
from icve.curation.annotate.edit_kinds import edit_type
from icve.curation.annotate.prompts import BANNED, change_prompt, clean, instruction_check
from icve.curation.annotate.sampled_frames import sample_clips
from icve.curation.stage import Outcome, Rejected, Row, Workspace
from icve.curation.vision_language import Answer, Question, VisionLanguageModel, side_by_side
from icve.data.media.video import VideoError, probe


class ModelAnnotator(AskingStage):
    """Adds ``instruction`` (and ``edit_type``): what leads from a row's source clip to its target clip.

    A model sees a few pairs of frames, source left and target right, and writes one concise instruction for the most
    significant change. The clips may be two of one scene or a clip and its edited copy. Rows without an instruction are
    rejected as "no instruction".

    Args:
        model: whom to ask.
        pairs: pairs of frames shown, spread evenly over the clips' time.
        frame_side: pixels of the longer side of each frame, at most.
        language: of the instruction; a key of ``icve.curation.annotate.prompts.SCRIPTS``.
        banned: words and phrases, lower case, that an instruction must not have.
        min_characters, max_characters: bounds of an instruction's length.
        max_tokens: longest answer. Models that think aloud need thousands.
        edit_types: whether to add ``edit_type``, by the instruction's verb (for instructions in English).
        batch_size: rows asked about together; several times the model's concurrency keeps an endpoint busy.

    Raises:
        ValueError: a parameter out of its range.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        pairs: int = 3,
        frame_side: int = 512,
        language: str = "English",
        banned: Sequence[str] = BANNED,
        min_characters: int = 6,
        max_characters: int = 200,
        max_tokens: int = 128,
        edit_types: bool = True,
        batch_size: int = 32,
    ) -> None:
        if min(pairs, max_tokens, batch_size) < 1 or frame_side < 28:
            raise ValueError("pairs, max_tokens and batch_size must be at least 1, and frame_side at least 28.")
        super().__init__(model, batch_size)
        self.pairs, self.frame_side, self.max_tokens, self.edit_types = pairs, frame_side, max_tokens, edit_types
        self.prompt = change_prompt(pairs, language)
        self.check = instruction_check(language, banned, min_characters, max_characters)

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        """Reads ``source_path``, ``target_path`` and, where there, their ``_start`` and ``_frames``."""
        questions = [self._question(row, work) for row in rows]
        answers = iter(self.ask([question for question in questions if isinstance(question, Question)], work))
        return [
            question if isinstance(question, Rejected) else self._outcome(row, next(answers))
            for row, question in zip(rows, questions, strict=True)
        ]

    def _question(self, row: Row, work: Workspace) -> Question | Rejected:
        try:
            return Question(self.prompt, self._pictures(row, work), self.check, self.max_tokens)
        except VideoError as error:  # here, so that the others of its batch are still asked side by side
            return Rejected("unreadable video", str(error))

    def _outcome(self, row: Row, answer: Answer) -> Outcome:
        if answer.text is None:
            return Rejected("no instruction", answer.error, answer.transient)
        instruction = clean(answer.text)
        kind = {"edit_type": edit_type(instruction)} if self.edit_types else {}
        return {**row, "instruction": instruction, **kind}

    def _pictures(self, row: Row, work: Workspace) -> list[np.ndarray]:
        height, width = probe(work.file(row, "source_path")).displayed
        scale = min(1.0, self.frame_side / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return [side_by_side(*pair) for pair in zip(*sample_clips(row, work, self.pairs, size), strict=True)]
