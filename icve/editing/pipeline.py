"""EditPipeline: source video and instruction to edited video, as a diffusers pipeline that lives in one folder.

Shapes: B items, C latent channels, F = 4k+1 frames of HxW pixels, T = k+1 latent frames of hxw.
"""

import difflib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.distributed as dist
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from icve.data.edit_region import region_from_mask, shown_mask
from icve.data.latent_grid import LatentGrid
from icve.data.text_condition import TextCondition
from icve.editing.adapter_mixin import AdapterLoaderMixin
from icve.editing.edit_result import EditResult
from icve.editing.samplers import FlowSampler, SamplerSettings
from icve.editing.sampling import Sampling, Solver
from icve.editing.video_inputs import MaskInput, ReferenceInput, VideoInput, as_mask, as_reference, as_video
from icve.flow import Prediction, shift_for_tokens
from icve.models.denoiser import Denoiser, Latents
from icve.models.families import import_parts
from icve.models.family import Base
from icve.models.frozen import FrozenComponent
from icve.models.licences import bases_of, write_bases
from icve.models.loading import load_transformer
from icve.models.parts_fit import check_parts
from icve.models.protocols import Codec, TextEncoder
from icve.models.run_folders import exported
from icve.models.sequence_parallel import sequence_parallel_group
from icve.models.state_ranges import has_ranges
from icve.runtime.transfers import to_device

import_parts()  # diffusers resolves the components named in a folder only among modules that are imported already

StepCallback = Callable[["EditPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]

_NO_MASKS = "its transformer was trained without model.transformer.init_args.masks"
_NO_REFERENCES = "it was trained without data.init_args.references"

# Used where a folder's own `defaults` say nothing.
DEFAULTS: dict[str, Any] = asdict(Sampling())


class PipelineConfig(FrozenDict):
    prediction: Prediction
    defaults: dict[str, Any]


class EditPipeline(DiffusionPipeline, AdapterLoaderMixin):
    """Instruction-based video editing in context: the transformer sees the source's clean latents while it denoises.

    Args:
        codec: `encode`/`decode` between pixels and latents, see `icve.models.protocols.Codec`.
        text_encoder: `encode(list[str])`, see `icve.models.protocols.TextEncoder`.
        scheduler: Euler sampler of the flow; `shift` comes from the call or from `defaults`, and so does the `solver`
            that may take its place.
        transformer: in-context DiT of any family, called through `icve.models.denoiser`.
        prediction: what the transformer predicts, "velocity" or "epsilon".
        defaults: sampling settings of this model and the clip size it was trained on, saved with the folder; any of
            steps, guidance_scale, guidance_until, shift, shift_tokens, negative_prompt, num_frames, height, width
            (pixels), fps, solver.
        references: whether it was trained to take looks from a reference picture.
    """

    config: PipelineConfig
    codec: Codec
    text_encoder: TextEncoder
    scheduler: FlowMatchEulerDiscreteScheduler

    # diffusers gives these two no type but that of their defaults, None and [].
    model_cpu_offload_seq = "text_encoder->codec->transformer->codec"  # type: ignore[assignment]
    _optional_components: ClassVar = ["transformer"]  # type: ignore[misc]  # a checkpoint of an adapter has none
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        codec: ModelMixin,
        text_encoder: ModelMixin,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: ModelMixin,
        prediction: str = "velocity",
        defaults: dict[str, Any] | None = None,
        references: bool = False,
    ):
        super().__init__()
        if prediction not in ("velocity", "epsilon"):
            raise ValueError(f"The prediction must be 'velocity' or 'epsilon', got {prediction!r}.")
        given = dict(defaults or {})
        for name in given:
            if name not in DEFAULTS:
                near = difflib.get_close_matches(name, DEFAULTS, n=1, cutoff=0.0)[0]
                raise ValueError(f"Unknown default {name!r} of EditPipeline; did you mean {near!r}?")
        check_parts(transformer, codec, text_encoder)
        self.register_modules(codec=codec, text_encoder=text_encoder, scheduler=scheduler, transformer=transformer)
        if not self.grid.is_length(frames := given.get("num_frames") or 1):
            raise ValueError(f"The default num_frames must be {self.grid.lengths}, got {frames}.")
        self.register_to_config(prediction=prediction, defaults=given, **({"references": True} if references else {}))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # diffusers takes every class in a folder that is called as one of its pipelines for a part of that pipeline.
        part = getattr(value, "_orig_mod", value)  # of a compiled one
        module = type(part).__module__
        theirs = module.startswith(("diffusers.", "transformers."))
        if isinstance(part, nn.Module) and name in self.config and not theirs:
            self.register_to_config(**{name: (module, type(part).__name__)})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a folder written by `save_pretrained`; weights only from safetensors, and no code from the folder.

        Of a training checkpoint that is not exported, the transformer's weights come from the training state.
        """
        folder = Path(pretrained_model_name_or_path)
        if "transformer" not in kwargs and has_ranges(folder) and not exported(folder):
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            kwargs["transformer"] = load_transformer(folder, dtype=dtype if isinstance(dtype, torch.dtype) else None)
        return super().from_pretrained(
            pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True, "trust_remote_code": False}
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, embed: bool = False, **kwargs: Any
    ) -> None:
        """Write the editor's folder.

        Args:
            save_directory: the folder.
            embed: copy the weights of frozen parts (`icve.models.frozen`) into it, for an editor that is given away or
                moved to another machine; otherwise the folder only names the folders they were read from.
            *args, **kwargs: as in diffusers.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        write_bases(save_directory, self.bases)
        if embed:
            for name, component in self.components.items():
                if isinstance(component, FrozenComponent):
                    component.save_pretrained(Path(save_directory) / name, embed=True)

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; parts without weights stay on the accelerator."""
        self._read_frozen_parts()
        # accelerate's hooks ask a module's first parameter where the module is.
        without_weights = [
            name
            for name, part in self.components.items()
            if isinstance(part, torch.nn.Module) and next(part.parameters(), None) is None
        ]
        self._exclude_from_cpu_offload = [*type(self)._exclude_from_cpu_offload, *without_weights]
        order = type(self).model_cpu_offload_seq.split("->")
        self.model_cpu_offload_seq = "->".join(name for name in order if name not in without_weights)
        super().enable_model_cpu_offload(*args, **kwargs)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers."""
        self._read_frozen_parts()
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def _read_frozen_parts(self) -> None:
        # The hooks of offloading look at the weights that they will move.
        for component in self.components.values():
            if isinstance(component, FrozenComponent):
                component.load_to_offload()

    @property
    def bases(self) -> list[Base]:
        """Published weights that the codec and the text encoder contain; the transformer was trained on theirs."""
        return bases_of([self.components["codec"], self.components["text_encoder"]])

    @property
    def grid(self) -> LatentGrid:
        """How pixels become latents and tokens."""
        patch = getattr(self.transformer, "patch", LatentGrid().patch)  # a checkpoint of an adapter has no transformer
        return LatentGrid(self.codec.spatial_factor, self.codec.temporal_factor, patch)

    @property
    def takes_masks(self) -> bool:
        """Whether an edit may have a mask of the region to change."""
        return bool(getattr(self.transformer, "takes_masks", False))

    @property
    def takes_references(self) -> bool:
        """Whether an edit may have a reference picture."""
        return bool(self.config.get("references", False))

    def default(self, name: str) -> Any:
        """The model's default of a setting (a key of `DEFAULTS`)."""
        value = self.config.defaults.get(name)
        return DEFAULTS[name] if value is None else value

    def default_shift(self, latents: Sequence[int]) -> float:
        """The model's default shift for a clip of latents (T, h, w): it may depend on how many tokens they are."""
        tokens = math.prod(latents) // math.prod(self.grid.patch)
        return shift_for_tokens(self.default("shift"), tokens, self.default("shift_tokens"))

    @torch.no_grad()
    def __call__(
        self,
        video: VideoInput,
        instruction: str | Sequence[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_until: float | None = None,
        shift: float | None = None,
        negative_prompt: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        embedded_guidance_scale: float = 1.0,
        callback_on_step_end: StepCallback | None = None,
        output_type: Literal["pt", "uint8", "latent"] = "pt",
        mask: MaskInput | None = None,
        reference: ReferenceInput | None = None,
        solver: Solver | None = None,
    ) -> EditResult:
        """Edit B videos of one size.

        Args:
            video: source (B, 3, F, H, W), floating point in [-1, 1] or uint8, F = 4k+1, H and W multiples of 16 (8x8
                codecs, 2x2 patches); without B for one video. Also uint8 arrays (F, H, W, 3) and paths of video files,
                one or a list of one shape: files are read at the model's size, from their start, at most the model's
                `num_frames` (`icve edit` edits whole files), and a length that is not 4k+1 is continued by the last
                frame and cut again.
            instruction: one for all, or one per video.
            num_inference_steps, shift, negative_prompt: None takes the model's default.
            guidance_scale: classifier-free guidance; 1 skips the negative branch and halves the cost.
            guidance_until: noise level, in [0, 1), down to which the steps are guided; later steps, which settle detail
                rather than content, take the instructed branch alone, keep the source better and cost half. 0 guides
                every step.
            generator: one per item makes an item's result independent of what it is batched with; a single one is drawn
                from item after item.
            embedded_guidance_scale: guidance fed to models with a guidance embedding (times 1000).
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": latents})` after every step;
                the latents in the dict it returns replace the step's.
            output_type: "pt" for floating point in [-1, 1], "uint8" for pixels in 0..255, "latent" for (B, C, T, h, w).
            mask: the region to change, for editors that take one: True or white marks what changes. A bool or uint8
                array (H, W), for all frames, or (F, H, W); or the path of a picture or video; one for all videos or a
                list of B.
            reference: a picture to take looks from, for editors that take one: uint8 array (H, W, 3) or a path; one for
                all videos or a list of B.
            solver: "euler" or "unipc", see `Sampling`; None takes the model's default.

        Returns:
            an EditResult, whose ``video`` is (B, 3, F, H, W) float32 or uint8, or float32 latents (B, C, T, h, w).

        Raises:
            ValueError: if the numbers of videos, instructions and generators disagree, a setting is out of range, or a
                mask or reference cannot be used.
        """
        if output_type not in ("pt", "uint8", "latent"):
            raise ValueError(f"output_type must be 'pt', 'uint8' or 'latent', got {output_type!r}.")
        pixels = self.default("height") * self.default("width")
        video, frames = as_video(video, pixels, self.default("num_frames"), self.grid)
        instructions = [instruction] * len(video) if isinstance(instruction, str) else list(instruction)
        if len(instructions) != len(video):
            raise ValueError(f"Got {len(video)} videos and {len(instructions)} instructions.")

        size, region, picture = (video.shape[3], video.shape[4]), None, None
        if mask is not None:
            painted = as_mask(mask, len(video), frames, video.shape[2], size)
            region = region_from_mask(painted, self.grid.latents(*size, video.shape[2]))
        if reference is not None:
            picture = self.encode_video(as_reference(reference, len(video), size))
        latents = self.edit_latents(
            self.encode_video(video),
            instructions,
            num_inference_steps,
            guidance_scale,
            guidance_until,
            shift,
            negative_prompt,
            generator,
            embedded_guidance_scale,
            callback_on_step_end,
            mask=region,
            reference=picture,
            solver=solver,
        )
        self.maybe_free_model_hooks()
        if output_type == "latent":
            return EditResult(latents)
        return EditResult(self.decode_latents(latents, output_type)[:, :, :frames])

    @torch.no_grad()
    def edit_latents(
        self,
        source: Tensor,
        instructions: Sequence[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_until: float | None = None,
        shift: float | None = None,
        negative_prompt: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        embedded_guidance_scale: float = 1.0,
        callback_on_step_end: StepCallback | None = None,
        mask: Tensor | None = None,
        reference: Tensor | None = None,
        solver: Solver | None = None,
    ) -> Tensor:
        """The call without the codec: source latents (B, C, T, h, w) float32 to edited ones; arguments as there.

        Args:
            mask: bool (B, 1, T, h, w), the region to change on the latent grid. Where a video's is empty, the source is
                returned; one of the whole picture is as none.
            reference: latents (B, C, 1, h, w).
        """
        if mask is not None and not self.takes_masks:
            raise ValueError(f"This editor takes no mask: {_NO_MASKS}.")
        if reference is not None and not self.takes_references:
            raise ValueError(f"This editor takes no reference: {_NO_REFERENCES}.")
        steps = self.default("steps") if num_inference_steps is None else num_inference_steps
        guidance_scale = self.default("guidance_scale") if guidance_scale is None else guidance_scale
        guidance_until = self.default("guidance_until") if guidance_until is None else guidance_until
        shift = self.default_shift(source.shape[2:]) if shift is None else shift
        negative_prompt = self.default("negative_prompt") if negative_prompt is None else negative_prompt
        if shift <= 0:
            raise ValueError(f"shift must be positive, got {shift}.")
        if not 0 <= guidance_until < 1:
            raise ValueError(f"guidance_until is a noise level in [0, 1), got {guidance_until}.")
        solver = self.default("solver") if solver is None else solver
        embedded = 1000.0 * embedded_guidance_scale
        settings = SamplerSettings(steps, shift, guidance_scale, guidance_until, embedded, solver)
        context = {"source": source}
        if mask is not None:
            context["mask"] = shown_mask(mask)
        if reference is not None:
            context["reference"] = reference
        edited = self.sample(
            noise={"video": draw_noise(source.shape, generator)},
            context=context,
            text=self.encode_text(instructions),
            negative=self.encode_text([negative_prompt] * len(instructions)) if guidance_scale != 1 else None,
            settings=settings,
            callback_on_step_end=callback_on_step_end,
        )["video"]
        if mask is None:
            return edited
        some = mask.flatten(1).any(1)[:, None, None, None, None].to(edited.device)
        return torch.where(some, edited, source.to(edited))

    def encode_video(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) uint8 or float in [-1, 1] -> latents (B, C, T, h, w) float32 on the execution device."""
        video = video.to(self._execution_device)
        video = video.float() / 127.5 - 1 if video.dtype == torch.uint8 else video.float()
        return self.codec.encode(video).float()

    def decode_latents(self, latents: Tensor, output_type: Literal["pt", "uint8"] = "pt") -> Tensor:
        """Latents (B, C, T, h, w) -> (B, 3, F, H, W), float32 clamped to [-1, 1] or rounded uint8."""
        video = self.codec.decode(latents.float()).float().clamp(-1, 1)
        return ((video + 1) * 127.5).round().to(torch.uint8) if output_type == "uint8" else video

    def encode_text(self, texts: Sequence[str]) -> TextCondition:
        """What the transformer is told of B texts."""
        distinct = list(dict.fromkeys(texts))  # a text encoder costs seconds per text
        return self.text_encoder.encode(distinct).rows([distinct.index(text) for text in texts])

    @torch.no_grad()
    def sample(
        self,
        *,
        noise: Latents,
        context: Latents,
        text: TextCondition,
        negative: TextCondition | None,
        settings: SamplerSettings,
        callback_on_step_end: StepCallback | None = None,
    ) -> dict[str, Tensor]:
        """What the transformer does of an edit.

        Processes that share tokens (`icve.models.sequence_parallel`) call it together, with the same arguments; they
        start from the first one's noise.

        Args:
            noise, context: (B, C, T, h, w) float32 by name, on any device; so are the texts.
            text, negative: of B instructions; no `negative` where nothing is guided.
            settings: how.
            callback_on_step_end: as in the call.

        Raises:
            ValueError: the processes cannot share the model's heads, or its step cache.
        """
        device = self._execution_device
        noise = {name: self._shared(to_device(value, device)) for name, value in noise.items()}
        sampler = FlowSampler(self.scheduler, self.config.prediction)
        with self.progress_bar(total=settings.steps) as progress:

            def after_step(index: int, timestep: Tensor, latents: dict[str, Tensor]) -> dict[str, Tensor]:
                progress.update()
                if callback_on_step_end is None:
                    return latents
                given = {"latents": latents["video"]}
                return latents | {
                    "video": callback_on_step_end(self, index, timestep, given).pop("latents", latents["video"])
                }

            return sampler(Denoiser(self.transformer), noise, context, text, negative, settings, after_step)

    def _shared(self, noise: Tensor) -> Tensor:
        """The noise of the first of the processes that share tokens, or `noise` where none are shared."""
        group = sequence_parallel_group()
        if group is not None:
            cache = self.transformer._cache_config
            # Each process would decide by its own tokens, and wait for others that decided otherwise.
            if type(cache).__name__ in ("FirstBlockCacheConfig", "SeaCacheConfig"):
                raise ValueError(
                    f"{type(cache).__name__} cannot be used where {group.size()} processes share tokens: use a cache "
                    "that skips by step, such as MagCacheConfig, or disable_cache()."
                )
            dist.broadcast(noise, group=group, group_src=0)
        return noise


def draw_noise(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise (B, ...) float32, every item drawn by itself so that batching does not change it.

    Raises:
        ValueError: if a list of generators has not one per item.
    """
    generators = list(generator) if isinstance(generator, Sequence) else [generator] * shape[0]
    if len(generators) != shape[0]:
        raise ValueError(f"Got {shape[0]} videos and {len(generators)} generators.")
    # Drawn on the generator's own device, the CPU unless told otherwise: the same seed edits alike on every machine.
    return torch.stack(
        [
            torch.randn(shape[1:], generator=item, device=item.device if item is not None else "cpu")
            for item in generators
        ]
    )
