"""Answers kept on disk, so that no question is paid for twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icve.curation.stage import Workspace
from icve.curation.vision_language import Answer, Question, VisionLanguageModel
from icve.runtime.atomic import whole_file


def ask(model: VisionLanguageModel, questions: Sequence[Question], work: Workspace) -> list[Answer]:
    """Ask a model from within a stage: answers worth keeping are kept in ``answers/`` of the run's output."""
    model.keep_answers(work.output / "answers")
    return model.ask(questions)


class AnswerStore:
    """Answers by the digest of everything they depend on, one JSON file each, shared by processes and runs.

    Files are written whole or not at all; of two processes that write the same answer one wins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(prompt: str, pictures: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> str:
        """Digest of a prompt, its pictures ((H, W, 3) uint8 each) and whatever else decides an answer (JSON types)."""
        digest = hashlib.sha256(json.dumps([prompt, parameters], sort_keys=True).encode())
        for picture in pictures:
            digest.update(repr(picture.shape).encode())
            digest.update(np.ascontiguousarray(picture).data)
        return digest.hexdigest()

    def get(self, key: str) -> str | None:
        """The answer's text, or None where there is none (or its file is damaged, which costs one more question)."""
        try:
            text = json.loads(self._file(key).read_text(encoding="utf-8"))["text"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return text if isinstance(text, str) else None

    def put(self, key: str, text: str, **about: Any) -> None:
        """Keep an answer, and beside it what a person would want to know of it (JSON types)."""
        with whole_file(self._file(key)) as temporary:
            temporary.write_text(json.dumps({"text": text, **about}, ensure_ascii=False), encoding="utf-8")

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"  # 256 folders: no folder of a million files
