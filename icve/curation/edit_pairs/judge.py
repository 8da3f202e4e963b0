"""Judge: a vision-language model marks every pair, and only full marks stay (ICVE, paired data: the last filter)."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from icve.curation.annotate.asking import AskingStage
from icve.curation.edit_pairs.frames import clip_of, spread
from icve.curation.edit_pairs.parse_json import fault_of, parse_json
from icve.curation.stage import Outcome, Rejected, Row, Workspace
from icve.curation.vision_language import Answer, Question, VisionLanguageModel, side_by_side
from icve.data.media.video import probe

PROMPT = """Each picture shows one moment of a video twice: as it was on the left, and after an edit on the right.
The edit was asked for with these words: "{instruction}"
Give two marks from 1 (very bad) to 5 (flawless).
instruction: was exactly this done, completely, in all pictures, to the right thing, and was everything else left
as it was? An edit that is missing, partial, or of something else gets 1 or 2; side effects cost marks.
quality: does the right side look like footage of one scene? Patches, black or grey shapes, blur, seams, distorted
bodies or objects, and things that change from picture to picture for no reason cost marks.
Answer with JSON only, in this form: {{"instruction": 3, "quality": 4}}"""

_TWO_MARKS = re.compile(r"\s*([1-5])\s*[,;/ ]\s*([1-5])\s*\.?\s*")


def parse_marks(text: str) -> tuple[int, int]:
    """Marks for instruction and quality, 1..5, from an answer to `PROMPT`, or from two bare digits.

    Raises:
        ValueError: it has another form, in a sentence that the model can be told.
    """
    if bare := _TWO_MARKS.fullmatch(text):
        return int(bare[1]), int(bare[2])
    answer = parse_json(text)
    given = [answer.get(name) for name in ("instruction", "quality")] if isinstance(answer, dict) else []
    marks = [mark for mark in given if type(mark) is int and 1 <= mark <= 5]
    if len(marks) != 2:
        raise ValueError('The answer must hold "instruction" and "quality", each a whole number from 1 to 5.')
    return marks[0], marks[1]


check_marks = partial(fault_of, parse_marks)  # what is wrong with an answer to `PROMPT`, or None


class Judge(AskingStage):
    """Keeps pairs with full marks for following the instruction and for visual quality.

    Reads `source_path`, `target_path` (of any size: targets are stretched to the source's) and `instruction`; writes
    `judge_instruction` and `judge_quality`, 1..5, means over the repeats. Rejects "instruction not followed", "poor
    quality" (where the instruction was followed) and, without a usable answer, "not judged".

    Args:
        model: the vision-language model; it sees pairs of frames side by side, source left.
        keep: least mark of both kinds, 1..5.
        pairs: pictures per question.
        repeats: questions per pair, each about other moments of the clip.
        frame_side: pixels of the longer side of each frame, at most.
        batch_size: pairs per call of the model.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        keep: float = 5,
        pairs: int = 4,
        repeats: int = 1,
        frame_side: int = 504,
        batch_size: int = 8,
    ) -> None:
        if not 1 <= keep <= 5 or min(pairs, repeats, frame_side, batch_size) < 1:
            raise ValueError("Judge needs keep in 1..5, and at least 1 pair, repeat, pixel and row per batch.")
        super().__init__(model, batch_size)
        self.keep, self.pairs, self.repeats, self.frame_side = keep, pairs, repeats, frame_side
        self.questions_per_row = repeats

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        answers = self.ask([question for row in rows for question in self._questions(row, work)], work)
        groups = [answers[start : start + self.repeats] for start in range(0, len(answers), self.repeats)]
        return [self._outcome(row, group) for row, group in zip(rows, groups, strict=True)]

    def _questions(self, row: Row, work: Workspace) -> list[Question]:
        source, target = clip_of(row, work, "source"), clip_of(row, work, "target")
        frames, prompt = min(source.frames, target.frames), PROMPT.format(instruction=row["instruction"])
        height, width = probe(source.file).displayed
        scale = min(1.0, self.frame_side / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        questions = []
        for turn in range(self.repeats):
            numbers = spread(frames, self.pairs, turn, self.repeats)
            pictures = map(side_by_side, source.read(numbers, size), target.read(numbers, size))
            questions.append(Question(prompt, tuple(pictures), check_marks, max_tokens=64))
        return questions

    def _outcome(self, row: Row, answers: list[Answer]) -> Outcome:
        if failed := [answer for answer in answers if answer.text is None]:
            return Rejected("not judged", failed[0].error, any(answer.transient for answer in failed))
        marks = [parse_marks(answer.text) for answer in answers if answer.text is not None]
        instruction, quality = np.mean(marks, axis=0).round(3).tolist()
        detail = f"instruction {instruction:g}, quality {quality:g}, at least {self.keep:g} wanted"
        if instruction < self.keep:
            return Rejected("instruction not followed", detail)
        if quality < self.keep:
            return Rejected("poor quality", detail)
        return {**row, "judge_instruction": instruction, "judge_quality": quality}
