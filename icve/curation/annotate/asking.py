"""Stages that ask a vision-language model about their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from icve.curation.annotate.answers import ask
from icve.curation.stage import Row, Stage, Workspace
from icve.curation.vision_language import Answer, Question, VisionLanguageModel


class AskingStage(Stage):
    """Needs what its model needs, and takes as long.

    Args:
        model: is asked.
        batch_size: most rows asked about at once.

    Attributes:
        questions_per_row: how often the model is asked about a row.
    """

    incidental: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    questions_per_row: int = 1

    def __init__(self, model: VisionLanguageModel, batch_size: int) -> None:
        self.model, self.batch_size, self.needs = model, batch_size, model.needs

    def setup(self) -> None:
        """Load the model or connect to it."""
        self.model.setup()

    def seconds(self, row: Row) -> float:
        """As long as the model may take for a row's questions, and a minute for reading the frames."""
        return 60.0 + self.questions_per_row * self.model.seconds

    def ask(self, questions: Sequence[Question], work: Workspace) -> list[Answer]:
        """Answers in the order of the questions; those worth keeping are kept in the run's output."""
        return ask(self.model, questions, work)
