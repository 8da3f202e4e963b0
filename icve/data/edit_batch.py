"""What a training batch holds, from the data module to the objective."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from icve.data.shared_loading import Shared
from icve.data.text_condition import TextCondition

CLIPS = ("source", "target", "reference")  # keys of what the codec encodes


class EditBatch(TypedDict, total=False):
    """B pairs of clips of one size. Keys that a data set has nothing for are absent.

    Attributes:
        source, target: pixels, uint8 (B, 3, F, H, W); or latents (B, C, T, h, w), from a cache or once encoded.
        instruction, id: of every pair.
        text: from a cache, every instruction's condition, None where it has to be encoded (a transform changed the
            instruction). `no_text`: that of "".
        condition: what the transformer is told, once the texts are encoded.
        mask: edit mask in pixels, bool (B, 1, F, H, W), True in the region to change. `region`: the same on the latent
            grid (B, 1, T, h, w).
        reference: picture to take looks from, as a clip of one frame; what of it samples without one hold has no
            meaning. `referenced`: whether each sample has one.
        weight: of the batch's loss in the step's. `step_samples`: of the step's global batch.
        data_set, loss_weight: of every sample of a mixture: name of its data set, and what its loss is multiplied by.
        counted: False where a sample stands in for another one in a validation.
        dropped: (id, reason) of pairs that could not be read.
        shared: how the tensors lie on the processes of a group (`icve.data.shared_loading`), until they are gathered.
    """

    source: Tensor
    target: Tensor
    instruction: list[str]
    id: list[str]
    text: list[TextCondition | None]
    no_text: TextCondition
    condition: TextCondition
    mask: Tensor
    region: Tensor
    reference: Tensor
    referenced: list[bool]
    weight: float
    step_samples: int
    data_set: list[str]
    loss_weight: list[float]
    counted: list[bool]
    dropped: list[tuple[str, str]]
    shared: dict[str, Shared]
