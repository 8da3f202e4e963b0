"""Any other model of videos, as a TorchScript file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from icve.data.media.video import resize_crop
from icve.editing.editors import checked_device
from icve.evaluation.metrics.metric import ClipInfo, Metric
from icve.runtime.transfers import to_device


class ScriptedModel(Metric):
    """Figures of a TorchScript file, such as an export of VTSS, ViCLIP or VideoCLIP-XL.

    The file is called with a tensor per video of ``videos``, float32 (1, F, 3, H, W), then, with a tokenizer, with the
    text's tokens, int64 (1, L). It returns a number or a vector, (n,) or (1, n), of the clip.

    Args:
        file: made by ``torch.jit.script`` or ``torch.jit.trace`` and ``torch.jit.save``.
        figures: names of the numbers that it returns, in their order.
        frames: number of frames that it gets, F.
        size: (H, W).
        videos: what it is shown: "edited", and maybe "source" or "target" beside it.
        choice: which frames of N: "even" is int(i · N / F), as ViCLIP is used; "stride" the first F of every
            ⌊N / F⌋th, as IVEBench (which never sees the tail); "ends" spreads them from the first to the last. A
            shorter video repeats frames.
        fit: "stretch" to the size, or "crop" what sticks out.
        mean: taken from the colours, which are in [0, 1].
        deviation: that they are divided by then.
        text: what the tokenizer reads.
        tokenizer: folder of a tokenizer in transformers' layout; None gives no tokens.
        tokens: L, to which texts are padded and cut.
        device: None is a GPU where there is one.
    """

    def __init__(
        self,
        file: str,
        figures: Sequence[str],
        frames: int = 8,
        size: tuple[int, int] = (224, 224),
        videos: Sequence[Literal["edited", "source", "target"]] = ("edited",),
        choice: Literal["even", "stride", "ends"] = "even",
        fit: Literal["stretch", "crop"] = "stretch",
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        deviation: Sequence[float] = (1.0, 1.0, 1.0),
        text: Literal["target_caption", "instruction", "source_caption"] = "target_caption",
        tokenizer: str | None = None,
        tokens: int = 77,
        device: str | None = None,
    ) -> None:
        if frames < 1 or not figures or not videos:
            raise ValueError("A scripted model has at least one frame, one figure and one video.")
        self._device = checked_device(device)
        self._module = load_scripted(file, self._device)
        self._figures, self._frames, self._size = list(figures), frames, (size[0], size[1])
        self._videos, self._choice, self._shape = list(videos), choice, self._size if fit == "stretch" else None
        self._statistics = tuple(torch.tensor(list(values)).view(3, 1, 1) for values in (mean, deviation))
        self._text, self._tokens, self._tokenizer = text, tokens, None
        if tokenizer is not None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.needs = (*self._videos, *([text] if tokenizer is not None else []))

    def reset(self, clip: ClipInfo) -> None:
        self._numbers, self._next = chosen_frames(clip.frames, self._frames, self._choice), 0
        self._shown: dict[str, list[np.ndarray]] = {video: [] for video in self._videos}
        self._words: list[Tensor] = []
        if self._tokenizer is not None:
            options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self._tokens}
            self._words = [self._tokenizer(clip.texts[self._text], **options, return_tensors="pt").input_ids]

    def update(self, **frames: np.ndarray) -> None:
        first = self._next
        self._next += len(frames[self._videos[0]])
        numbers = self._numbers[(self._numbers >= first) & (self._numbers < self._next)] - first
        if len(numbers):
            for video in self._videos:
                self._shown[video].append(resize_crop(frames[video][numbers], self._size, self._shape))

    def compute(self) -> Mapping[str, float]:
        mean, deviation = self._statistics
        clips = [torch.from_numpy(np.concatenate(self._shown[video])).permute(0, 3, 1, 2) for video in self._videos]
        inputs = [to_device(((clip / 255.0 - mean) / deviation)[None], self._device) for clip in clips]
        with torch.inference_mode():
            found = self._module(*inputs, *(to_device(words, self._device) for words in self._words))
        values = found.flatten().tolist() if isinstance(found, Tensor) else [found]
        if len(values) != len(self._figures):
            raise ValueError(f"The model returns {len(values)} numbers, and {len(self._figures)} figures are named.")
        return dict(zip(self._figures, map(float, values), strict=True))


def chosen_frames(there: int, wanted: int, choice: Literal["even", "stride", "ends"]) -> np.ndarray:
    """Numbers of ``wanted`` frames out of ``there``, ascending; see :class:`ScriptedModel`."""
    if choice == "ends":
        return np.linspace(0, there - 1, wanted).round().astype(int)
    if choice == "stride" and there >= wanted:
        return np.arange(wanted) * (there // wanted)
    return np.arange(wanted) * there // wanted


def load_scripted(file: str, device: str) -> Any:
    """A TorchScript file on a device. Raises ValueError where it is none."""
    if not Path(file).is_file():
        raise ValueError(
            f"There is no TorchScript file {file}: save one with torch.jit.save(torch.jit.script(model), …)."
        )
    try:
        return torch.jit.load(file, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{file} is no TorchScript file: save one with torch.jit.save.") from error
