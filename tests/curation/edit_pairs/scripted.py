"""A vision-language model that answers as a test says, and a clip for it to look at."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from icve.curation.stage import Row, Workspace
from icve.curation.vision_language import Answer, Question, VisionLanguageModel
from icve.data.media.video import write_video


class Scripted(VisionLanguageModel):
    """Asks `reply` for a text, checks it and asks once more as the contract has it; None is a lost connection."""

    def __init__(self, reply: Callable[[Question], str | None] | str | None) -> None:
        self.reply = reply if callable(reply) else lambda question: reply
        self.asked: list[Question] = []
        self.ready = False

    def setup(self) -> None:
        self.ready = True

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        self.asked.append(question)
        for _ in range(2):
            text = self.reply(question)
            if text is None:
                return Answer(None, "no connection", transient=True)
            if (error := question.check(text)) is None:
                return Answer(text)
        return Answer(None, error)


def moving_square(frames: int = 9, size: tuple[int, int] = (48, 80), speed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A red square that moves over a grey gradient: frames (F, H, W, 3) uint8 and its mask (F, H, W)."""
    height, width = size
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = np.linspace(90, 180, width, dtype=np.uint8)[None, None, :, None]
    mask = np.zeros(video.shape[:3], bool)
    for number in range(frames):
        left = 8 + speed * number
        mask[number, 16:32, left : left + 16] = True
    video[mask] = (200, 30, 30)
    return video, mask


def clip_row(work: Workspace, key: str = "clip", video: np.ndarray | None = None, fps: float = 8.0) -> Row:
    """A row as clips are handed on, with its file in `sources/`."""
    video = moving_square()[0] if video is None else video
    write_video(work.output / "sources" / f"{key}.mp4", video, fps, crf=4)
    return {
        "key": key,
        "source_path": f"sources/{key}.mp4",
        "source_start": 0,
        "source_frames": len(video),
        "height": video.shape[1],
        "width": video.shape[2],
        "fps": fps,
    }


def workspace(folder: Path) -> Workspace:
    return Workspace(input=folder / "raw", output=folder, root=folder)
