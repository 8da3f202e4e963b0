"""Where the training of a stage starts."""

from dataclasses import dataclass

from icve.models.lora import LoRA


@dataclass(frozen=True)
class Start:
    """The weights that a stage starts from, and whether they or an adapter of them are trained.

    Args:
        pretrained: weights taken when no --ckpt_path is given; any layout that
            `icve.models.loading.load_transformer` knows.
        lora: train an adapter of these weights instead of the weights themselves (parameter-efficient); checkpoints
            then hold the adapter and the place of the weights it belongs to.
    """

    pretrained: str | None = None
    lora: LoRA | None = None
