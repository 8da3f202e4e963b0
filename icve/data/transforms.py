"""Changes of training samples as they are drawn: augmentation, and tasks made of the clips themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from icve.data.buckets import Draw, draw_generator

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


class SourceTransform(ABC):
    """Makes another training sample of one in pixels. Listed in `data.init_args.transforms`.

    A sample holds ``source`` and ``target`` uint8 (3, F, H, W), ``instruction``, ``id``, and in a data set with masks
    ``mask`` bool (1, F, H, W): where the target is edited. The target keeps its shape, which belongs to the bucket.
    The source may get another length that the codec can encode; the samples of a batch must then agree on it.

    What is random is taken from the generator that a call is given, so that it depends on (seed, step, position in the
    global batch, place in the list) only.

    Attributes:
        per_step: every sample of a step gets the same random numbers, for decisions that a batch has to share.
    """

    per_step: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The changed sample, with the same keys. The tensors that are given stay as they are: they may be shared."""


class LatentTransform(SourceTransform):
    """A transform that latents of a cache can have as well: without encoding, its result is exactly the same.

    Attributes:
        texts: instructions that it may give to any sample; `icve encode` encodes them into the cache. What else it
            makes of instructions is encoded in training, for which the text encoder comes to the training device.
    """

    texts: Sequence[str] = ()

    @abstractmethod
    def on_latents(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """As the call in pixels, with the same random numbers, for a sample of a latent cache.

        It holds ``source`` and ``target`` latents (C, T, h, w) and, in place of ``mask``, ``region`` bool (1, T, h, w).
        The result must be what encoding the changed pixels gives. The embedding of the instruction is not in the
        sample: one that is changed is encoded anew.
        """


class KeepSource(LatentTransform):
    """Teaches to change nothing when nothing is asked for: the target is the source, and the instruction says so.

    An editor that only ever sees edits tends to change what it should keep. (SAMA's motion alignment leaves a tenth of
    its source clips as they are; methods, section 2.) The edited region of such a sample is empty.

    Args:
        share: of the samples, in [0, 1].
        instructions: one of them is drawn.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        share: float = 0.05,
        instructions: Sequence[str] = ("keep the video as it is", "change nothing", "leave the video unchanged"),
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share of KeepSource must be in [0, 1], got {share}.")
        if not instructions or not all(words.strip() for words in instructions):
            raise ValueError("instructions of KeepSource must be at least one text, and none may be empty.")
        self.share, self.texts = share, list(instructions)

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.share:
            return sample
        instruction = self.texts[int(rng.integers(len(self.texts)))]
        nothing: dict[str, Any] = {
            name: torch.zeros_like(sample[name]) for name in ("mask", "region") if name in sample
        }
        return {**sample, "target": sample["source"], "instruction": instruction, **nothing}

    def on_latents(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return self(sample, rng)  # equal pixels have equal latents, and an empty mask an empty region


class SourceNoise(SourceTransform):
    """Makes an editor robust to noisy videos: Gaussian noise on the source, none on the target.

    This is the conditioning augmentation of cascaded diffusion models (Ho et al. 2021, arXiv 2106.15282). It takes a
    second of one core for 77 frames of 480x768.

    Args:
        share: of the samples, in [0, 1].
        deviation: the largest standard deviation of the noise, in levels of 0 to 255; a sample's is drawn uniformly.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, share: float = 0.5, deviation: float = 20.0) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share of SourceNoise must be in [0, 1], got {share}.")
        if not deviation > 0:
            raise ValueError(f"deviation of SourceNoise must be positive, got {deviation}.")
        self.share, self.deviation = share, deviation

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= self.share:
            return sample
        deviation = np.float32(self.deviation * rng.random())
        noisy_3FHW = sample["source"].clone()
        for frame_3HW in noisy_3FHW.unbind(1):  # one at a time: the noise of a clip would take four times its memory
            noise_3HW = torch.from_numpy(rng.standard_normal(tuple(frame_3HW.shape), dtype=np.float32) * deviation)
            frame_3HW.copy_((frame_3HW + noise_3HW).round_().clamp_(0, 255))
        return {**sample, "source": noisy_3FHW}


def on_latents(transform: SourceTransform) -> Transform:
    """What a transform does to samples of a latent cache. Raises ValueError where that cannot be done."""
    if not isinstance(transform, LatentTransform):
        raise ValueError(
            f"{type(transform).__name__} changes pixels, and a latent cache has none: take it out of "
            "data.init_args.transforms, or train from the videos, without data.init_args.latents."
        )
    return transform.on_latents


def given_texts(transforms: Sequence[SourceTransform]) -> list[str]:
    """Instructions that the transforms may give to samples of a latent cache, each once."""
    lists = [transform.texts for transform in transforms if isinstance(transform, LatentTransform)]
    return list(dict.fromkeys(text for texts in lists for text in texts))


def transformed(sample: dict[str, Any], transforms: Sequence[SourceTransform], seed: int, draw: Draw) -> dict[str, Any]:
    """A sample in pixels or, where it has ``text``, from a latent cache, changed by all transforms in their order.

    ``text`` is the embedding of the instruction that the sample came with. Transforms never see it, and it becomes
    None where the instruction has changed, so that no instruction has the embedding of another.

    Raises:
        ValueError: a transform changes what it must not.
    """
    changed = {name: value for name, value in sample.items() if name != "text"}
    for number, transform in enumerate(transforms):
        call = on_latents(transform) if "text" in sample else transform
        given, versions = changed, _versions(changed)
        changed = call(dict(given), draw_generator(seed, draw, f"transform {number}", transform.per_step))
        if reason := _refused(given, changed) or ("writes into tensors" if _versions(given) != versions else None):
            raise ValueError(f"{type(transform).__name__} {reason}: see the contract of icve.data.transforms.")
    if "text" in sample:
        changed["text"] = sample["text"] if changed["instruction"] == sample["instruction"] else None
    return changed


def _refused(given: dict[str, Any], changed: dict[str, Any]) -> str | None:
    """What of a changed sample cannot be trained on, or would be taken for something else."""
    if changed.keys() != given.keys():
        return f"returns {sorted(changed)} in place of {sorted(given)}"
    if changed["target"].shape != given["target"].shape:
        return f"returns a target of shape {tuple(changed['target'].shape)}, not {tuple(given['target'].shape)}"
    for name in ("source", "target"):  # pixels are known by their type
        if changed[name].dtype != given[name].dtype:
            return f"returns a {name} of {changed[name].dtype}, not {given[name].dtype}"
    return None


def _versions(sample: dict[str, Any]) -> list[int]:
    """Counters of the tensors, which a write into one raises."""
    return [value._version for value in sample.values() if isinstance(value, torch.Tensor)]
