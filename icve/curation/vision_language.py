"""What stages ask of a vision-language model, however it is reached: pictures and a prompt in, checked text out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np


@dataclass(frozen=True)
class Question:
    """One thing to ask.

    Attributes:
        prompt: what is asked, after the pictures.
        images: (H, W, 3) uint8 RGB each; frames of two videos are put side by side (`side_by_side`), never sent as
            videos.
        check: what is wrong with an answer, in a sentence that the model is told when it is asked once more, or None
            if nothing is.
        max_tokens: longest answer.
    """

    prompt: str
    images: Sequence[np.ndarray] = field(default_factory=tuple)
    check: Callable[[str], str | None] = lambda text: None if text.strip() else "The answer is empty."
    max_tokens: int = 256


@dataclass(frozen=True)
class Answer:
    """What came back: `text` that passed the check, or None with the reason in `error`.

    `transient` errors (no connection, rate limit, server error) may be gone another time; an answer that failed its
    check twice will not.
    """

    text: str | None
    error: str = ""
    transient: bool = False


class VisionLanguageModel(ABC):
    """A model that looks at pictures and writes. Constructors check their arguments; `setup` loads or connects.

    Attributes:
        needs, incidental: as of a stage (`icve.curation.stage.Stage`): a stage that asks the model needs what it needs.
        seconds: most that a question may take, with all attempts.
    """

    needs: ClassVar[Literal["cpu", "gpu"]] = "cpu"
    incidental: ClassVar[frozenset[str]] = frozenset()
    seconds: float = 600.0

    def setup(self) -> None:  # noqa: B027 - an endpoint has nothing to load
        """Load what takes time or memory; called once in the process that asks. Raises ValueError or OSError."""

    def keep_answers(self, folder: Path) -> None:  # noqa: B027 - of a model that runs here, answers cost nothing
        """Keep answers, and what they cost, in this folder, where they are worth keeping."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions. Never raises for a question's sake."""


def side_by_side(left: np.ndarray, right: np.ndarray, divider: int = 16) -> np.ndarray:
    """Two frames (H, W, 3) uint8 of one size as one picture: left, a white divider, right.

    Raises:
        ValueError: the sizes differ.
    """
    if left.shape != right.shape:
        raise ValueError(f"Frames to be compared must have one size, not {left.shape} and {right.shape}.")
    return np.concatenate([left, np.full((left.shape[0], divider, 3), 255, np.uint8), right], axis=1)
