"""How an editor samples unless told otherwise."""

from dataclasses import dataclass
from typing import Literal

Solver = Literal["euler", "unipc"]

# The release's negative prompt lists defects of quality; these are the same kinds in other words.
NEGATIVE_PROMPT = "blurred, noisy, overexposed, flickering, deformed bodies and faces, extra limbs, jerky motion"


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a model, by default those of the released one (methods: ICVE, objective).

    Written into every model folder, and used by the previews in training.

    Args:
        steps: of the solver.
        guidance_scale: classifier-free guidance; 1 switches it off and halves the cost.
        shift: of the noise levels towards 1.
        shift_tokens: tokens of a clip (of one window, in longer videos) at which `shift` holds; at others it is that of
            `icve.flow.shift_for_tokens`. None takes the objective's; if that is None too, `shift` holds at every size.
        guidance_until: noise level down to which steps are guided; 0 guides every step.
        negative_prompt: instruction of the negative branch.
        num_frames, height, width: clip size in pixels the model was trained on.
        fps: frame rate it was trained on; None keeps the input's.
        solver: "euler", or "unipc", which also uses what was predicted in the step before.

    Raises:
        ValueError: shift_tokens below 1.
    """

    steps: int = 50
    guidance_scale: float = 6.0
    shift: float = 7.0
    guidance_until: float = 0.0
    negative_prompt: str = NEGATIVE_PROMPT
    num_frames: int = 77
    height: int = 240
    width: int = 384
    fps: float | None = None
    shift_tokens: int | None = None
    solver: Solver = "euler"

    def __post_init__(self) -> None:
        if self.shift_tokens is not None and self.shift_tokens < 1:
            raise ValueError(f"sampling.shift_tokens must be at least 1, or null, got {self.shift_tokens}.")
