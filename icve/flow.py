"""Rectified flow: interpolant, density of the noise level, loss and sampling sigmas (methods: ICVE, Eq. 3).

sigma is the noise level in [0, 1]; the model's timestep is 1000*sigma. x0 are clean latents, noise is standard normal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["velocity", "epsilon"]
EPSILON_MAX_SIGMA = 0.999  # (noise - x_t)/(1 - sigma) is singular at 1
SIGMA_MARGIN = 1e-5  # sampled noise levels stay strictly inside (0, 1)


def _check_prediction(predicts: str) -> None:
    if predicts not in ("velocity", "epsilon"):
        raise ValueError(f"The prediction must be 'velocity' or 'epsilon', got {predicts!r}.")


def _per_sample(sigma: Tensor | float, like: Tensor) -> Tensor:
    """sigma (B,) or scalar, shaped to broadcast over `like` (B, ...), float32."""
    sigma = torch.as_tensor(sigma, dtype=torch.float32, device=like.device)
    return sigma.reshape(-1, *[1] * (like.ndim - 1)) if sigma.ndim else sigma


def shift_sigma(sigma, shift: float):
    """s*sigma / (1 + (s-1)*sigma): moves a noise level (float or tensor) towards 1 for shift > 1, fixing 0 and 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shift_for_tokens(shift: float, tokens: int, reference: int | None) -> float:
    """The shift at so many tokens, given that at `reference` tokens: s*sqrt(tokens/reference); s itself for None.

    Noise hides less of a picture that has more tokens, as neighbours tell the same. Noise levels that hide as much of m
    tokens as of n are each other's shift by sqrt(m/n) (Esser et al. 2024, arXiv:2403.03206, Eq. 23).
    """
    return shift if reference is None else shift * math.sqrt(tokens / reference)


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t = (1 - sigma)*x0 + sigma*noise; x0 and noise (B, ...), sigma (B,) in [0, 1]. Float32 in, float32 out."""
    sigma = _per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """dx_t/dsigma = noise - x0, the default regression target."""
    return noise - x0


@dataclass(frozen=True)
class TimestepDensity:
    """Law of the noise level in training: the shifted image of a logit-normal or uniform variable on (0, 1).

    Args:
        kind: "logit_normal" (sigmoid of a normal variable) or "uniform".
        mean, std: of the normal variable; unused by "uniform".
        shift: s in s*sigma/(1+(s-1)*sigma), as in sampling; > 1 puts more weight on high noise.
        uniform_share: share of the noise levels that are uniform on (0, 1) instead, unshifted: low ones too are seen.
        shift_tokens: tokens of a target at which `shift` holds; with others it is that of `shift_for_tokens`, in
            training and of the saved editor. None: at every size.
    """

    kind: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    uniform_share: float = 0.0
    shift_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("logit_normal", "uniform"):
            raise ValueError(f"The timestep density must be 'logit_normal' or 'uniform', got {self.kind!r}.")
        if self.std <= 0 or self.shift <= 0:
            raise ValueError("std and shift of the timestep density must be positive.")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share of the timestep density must be in [0, 1], got {self.uniform_share}.")
        if self.shift_tokens is not None and self.shift_tokens < 1:
            raise ValueError(f"shift_tokens of the timestep density must be at least 1, got {self.shift_tokens}.")

    def at(self, tokens: int) -> "TimestepDensity":
        """The law for targets of so many tokens, the same for all sizes."""
        if self.shift_tokens is None:
            return self
        return replace(self, shift=shift_for_tokens(self.shift, tokens, self.shift_tokens), shift_tokens=None)

    def level(self, chance: float) -> float:
        """The sigma in (0, 1) that a number in [0, 1] stands for: uniform numbers give levels of this law.

        Without a uniform share it rises with the number. With one, the numbers below it are the uniform levels, and the
        others rise anew: numbers that are spread evenly give each part its share.
        """
        share = self.uniform_share
        if chance < share:
            return min(max(chance / share, SIGMA_MARGIN), 1 - SIGMA_MARGIN)
        rest = (chance - share) / (1 - share) if share < 1 else 1.0
        sigma = torch.tensor(rest, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        if self.kind == "logit_normal":
            sigma = torch.sigmoid(self.mean + self.std * torch.special.ndtri(sigma))
        return float(shift_sigma(sigma, self.shift).clamp(SIGMA_MARGIN, 1 - SIGMA_MARGIN))

    def sample(self, generator: torch.Generator | None = None) -> float:
        """One sigma in (0, 1), a pure function of the state of a CPU generator."""
        return self.level(float(torch.rand((), generator=generator, dtype=torch.float64)))

    def share_below(self, sigma: float) -> float:
        """The share of the noise levels below one in [0, 1]."""
        if not 0 < sigma < 1:
            return float(sigma >= 1)
        plain = float(shift_sigma(sigma, 1 / self.shift))
        if self.kind == "logit_normal":
            normal = (math.log(plain / (1 - plain)) - self.mean) / self.std
            plain = 0.5 * math.erfc(-normal / math.sqrt(2))
        return self.uniform_share * sigma + (1 - self.uniform_share) * plain

    def shares(self, sigmas: Sequence[float]) -> list[float]:
        """The share of the noise levels that are nearest to each of these, which rise; they sum to 1."""
        between = [(low + high) / 2 for low, high in pairwise(sigmas)]
        below = [0.0, *map(self.share_below, between), 1.0]
        return [high - low for low, high in pairwise(below)]


def flow_loss(
    prediction: Tensor,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    predicts: Prediction = "velocity",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error per sample, in float32.

    Args:
        prediction: (B, C, T, h, w) output of the model at interpolate(x0, noise, sigma).
        x0, noise: (B, C, T, h, w).
        sigma: (B,) noise levels. Neither target depends on them; losses that weight by noise level need them.
        predicts: what the model predicts: "velocity" (noise - x0) or "epsilon" (noise, the paper's Eq. 3).
        weight: None or (B, 1|C, T, h, w) non-negative; scaled to mean 1 per sample, so that the size of an edited
            region does not change the size of the loss.

    Returns:
        (B,) float32.

    Raises:
        ValueError: for an unknown objective or shapes that do not agree.
    """
    _check_prediction(predicts)
    if not prediction.shape == x0.shape == noise.shape or sigma.shape != x0.shape[:1]:
        raise ValueError(
            f"flow_loss needs prediction, x0 and noise of one shape (B, ...) and sigma (B,), got "
            f"{tuple(prediction.shape)}, {tuple(x0.shape)}, {tuple(noise.shape)} and {tuple(sigma.shape)}."
        )
    target = velocity(x0.float(), noise.float()) if predicts == "velocity" else noise.float()
    error = (prediction.float() - target).square()
    if weight is not None:
        weight = weight.float().expand_as(error)
        weight = weight / weight.flatten(1).mean(1).clamp_min(1e-12).reshape(-1, *[1] * (error.ndim - 1))
        error = error * weight
    return error.flatten(1).mean(1)


def to_velocity(prediction: Tensor, x_t: Tensor, sigma: Tensor | float, predicts: Prediction) -> Tensor:
    """The velocity that a prediction means at x_t, in float32: itself, or (prediction - x_t)/(1 - sigma) for "epsilon".

    prediction, x_t: (B, ...); sigma: scalar or (B,), below 1 for "epsilon" (sampling starts at EPSILON_MAX_SIGMA).
    """
    _check_prediction(predicts)
    if predicts == "velocity":
        return prediction.float()
    return (prediction.float() - x_t.float()) / (1 - _per_sample(sigma, x_t))


def sampling_sigmas(steps: int, shift: float, predicts: Prediction = "velocity") -> list[float]:
    """The `steps` noise levels *before shifting* of an Euler sampler, linear from 1 (excluding the final 0).

    A scheduler shifts them by shift_sigma; for "epsilon" they start where the shifted level is EPSILON_MAX_SIGMA.
    """
    _check_prediction(predicts)
    if steps < 1:
        raise ValueError(f"Sampling needs at least 1 step, got {steps}.")
    start = 1.0 if predicts == "velocity" else shift_sigma(EPSILON_MAX_SIGMA, 1.0 / shift)
    return [start * (1 - step / steps) for step in range(steps)]
