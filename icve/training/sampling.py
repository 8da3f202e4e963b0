"""How a trained model is meant to be used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the trained model edits unless told otherwise; written into every model folder, used by the previews.

    Args:
        steps: Euler steps.
        guidance_scale: classifier-free guidance; 1 switches it off and halves the cost.
        shift: of the noise levels towards 1.
        guidance_until: noise level down to which steps are guided; 0 guides every step.
        negative_prompt: instruction of the negative branch.
        num_frames, height, width: clip size in pixels the model was trained on.
        fps: frame rate it was trained on; None keeps the input's.
    """

    steps: int = 50
    guidance_scale: float = 6.0
    shift: float = 7.0
    guidance_until: float = 0.0
    negative_prompt: str = ""
    num_frames: int = 77
    height: int = 240
    width: int = 384
    fps: float | None = None
