"""The training step: what an objective makes of a batch, on Lightning.

The transformer is the only part that learns. An objective (`icve.training.objectives`) turns encoded batches into
losses; the module encodes them, draws what is random, and holds no setting of either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from icve.data.edit_batch import CLIPS, EditBatch
from icve.data.latent_grid import LatentGrid
from icve.data.share import SampleGroup, data_share, sample_group
from icve.data.text_condition import TextCondition
from icve.editing.pipeline import EditPipeline
from icve.editing.sampling import Sampling
from icve.models.denoiser import Denoiser, InContextTransformer
from icve.models.known_texts import KnownTexts
from icve.models.lora import add_lora
from icve.models.parts_fit import check_parts
from icve.models.protocols import Codec, TextEncoder
from icve.runtime.storage.fetched import origin_of
from icve.runtime.transfers import to_device
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.data_record import data_record
from icve.training.checkpoints.micro_steps import STAGE_KEY, resplit
from icve.training.checkpoints.model_folder import write_model_folder, write_weights
from icve.training.checkpoints.starting_weights import check_shapes, on_meta, take_weights, trained_shapes
from icve.training.checkpoints.state_dicts import SHAPES
from icve.training.checkpoints.state_files import StateFiles
from icve.training.distributed.activation_checkpointing import Checkpointing
from icve.training.distributed.shared_encoding import encode_clips, encode_texts
from icve.training.lightning_types import EditingModule, parts_of, reports
from icve.training.objectives.objective import Objective
from icve.training.optimization.parameter_groups import scale_learning_rates
from icve.training.optimization.schedule import Schedule
from icve.training.randomness import Draws
from icve.training.start import Start
from icve.training.validation import HeldOutLoss

T = TypeVar("T")


class InContextEditingModule(EditingModule):
    """Trains a transformer for an objective, given frozen parts that make latents and text conditions.

    Args:
        transformer: the in-context DiT; the only part that learns, and the only one in `trainer.ckpt`.
        frozen: parts that do not learn, by name: "codec", pixels to latents; "text_encoder", instruction to embeddings;
            and what else an objective asks for.
        objective: what is trained for.
        stage: name of the training stage ("pretrain_240p", "sft", ...). A checkpoint of the same stage is resumed, one
            of another stage only gives its weights. Random draws depend on it.
        optimizer: builds the optimizer from the transformer's named parameters; any torch optimizer class in YAML.
        schedule: of the learning rate, and what parts of the model have of it.
        sampling: defaults of the saved model.
        seed: of every random draw.
        start: the weights that the stage starts from, and whether an adapter of them is trained.
        checkpointing: what the blocks keep for the backward pass, and what they compute again.
        compile: let torch.compile make kernels of the blocks, which takes a minute or more at the first step, and again
            when the length of texts and the size of buckets change for the first time. Losses stay equal to about 1e-5.

    Raises:
        ValueError: for values out of range, frozen parts that lack what the objective needs, or parts of different
            releases.
    """

    def __init__(
        self,
        transformer: nn.Module,
        frozen: dict[str, nn.Module],
        objective: Objective,
        stage: str,
        optimizer: OptimizerCallable,
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        seed: int = 0,
        start: Start = Start(),  # noqa: B008 (frozen)
        checkpointing: Checkpointing = Checkpointing(),  # noqa: B008 (frozen)
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not stage:
            raise ValueError("A training stage needs a name: set model.stage.")
        if missing := [name for name in ("codec", "text_encoder") if name not in frozen]:
            raise ValueError(f"model.frozen lacks {missing[0]!r}: it needs a codec and a text_encoder.")
        self.transformer = cast(InContextTransformer, transformer)
        self.lora = start.lora
        if self.lora is not None:
            dtype = torch.float32 if self.lora.weights_dtype == "auto" else getattr(torch, self.lora.weights_dtype)
            nn.Module.to(transformer, dtype)  # diffusers' own warns of modules to be kept in float32: there are none
        self.adapted: Path | None = None
        # A checkpoint of an adapter does not hold the weights it adapts.
        self.strict_loading = self.lora is None
        checkpointing.apply(self.transformer, compile)
        # A dict, unseen by nn.Module: frozen parts are neither saved, nor optimised, nor put in train mode.
        self.frozen = {name: part.eval().requires_grad_(False) for name, part in frozen.items()}
        self._places: dict[str, torch.device] = {}
        check_parts(transformer, frozen["codec"], frozen["text_encoder"])
        objective.use(self.frozen)
        self.objective = objective
        self.stage = stage
        self.optimizer = optimizer
        self.schedule = schedule
        self.sampling = sampling
        self.seed = seed
        self.start = start

        self._data: dict[str, Any] = {}  # what it is trained on
        self.references = False  # whether that has reference pictures, which the editor takes then
        self.samples = 0  # of this micro-batch on this process
        self._drawing_step, self._next_position = -1, 0
        self._figures: dict[str, Tensor] = {}  # of this micro-batch, on the device

    @property
    def codec(self) -> ModelMixin:
        return cast(ModelMixin, self.frozen["codec"])

    @property
    def text_encoder(self) -> ModelMixin:
        return cast(ModelMixin, self.frozen["text_encoder"])

    @property
    def grid(self) -> LatentGrid:
        """How pixels become latents and tokens."""
        codec = cast(Codec, self.codec)
        return LatentGrid(codec.spatial_factor, codec.temporal_factor, self.transformer.patch)

    @property
    def denoiser(self) -> Denoiser:
        return Denoiser(self.transformer)

    # ---- the training step -------------------------------------------------------------------------------------

    def training_step(self, batch: EditBatch, batch_idx: int) -> dict[str, Any]:
        """One micro-batch. Some steps need fewer micro-batches than others: the rest have no samples."""
        self.samples = len(batch["id"])
        if not self.samples:
            return {"loss": torch.zeros((), device=self.device, requires_grad=True), "samples": 0, "tokens": 0}
        draws = self.draws(self.samples, batch.get("step_samples"))
        encoded = self.encode(batch, self.objective.instructions(batch, draws))
        losses = self.objective.loss(self.denoiser, encoded, draws)
        per_sample = losses.per_sample
        if "loss_weight" in batch:  # not divided by their sum, which other micro-batches and processes do not know
            per_sample = per_sample * to_device(torch.tensor(batch["loss_weight"]), per_sample.device)
        loss = per_sample.mean()
        parts = {f"train/loss_{name}": part.detach().mean() for name, part in losses.parts.items()}
        self._figures = {"train/loss": loss.detach(), **parts}
        shape = tuple(encoded["target"].shape[2:])
        loss = loss * batch.get("weight", 1.0)
        of_sets = {"per_sample": losses.per_sample.detach()} if "data_set" in batch else {}
        return {"loss": loss, "samples": self.samples, "tokens": losses.tokens, "latents": shape, **of_sets}

    def on_train_batch_end(self, outputs: Any, batch: EditBatch, batch_idx: int) -> None:
        """Log the losses of the step's last micro-batch, where figures are logged: in one exchange, after the step."""
        step = self.trainer.global_step
        if self._figures and step > self._drawing_step and reports(self.trainer, step):
            names, values = zip(*self._figures.items(), strict=True)
            self._figures = {}
            means = torch.as_tensor(self.all_gather(torch.stack(values))).reshape(-1, len(names)).mean(0).cpu()
            self.log_dict(dict(zip(names, means, strict=True)))

    def draws(self, samples: int, of: int | None = None) -> Draws:
        """Random decisions of this micro-batch's samples, by their positions in the step's global batch `of` so many.

        None takes all its micro-batches for as large as this one.
        """
        draws = self.coming_draws(samples, of, self.trainer.global_step)
        first = self._next_position if draws.step == self._drawing_step else 0
        self._drawing_step, self._next_position = draws.step, first + data_share(self.trainer)[1] * samples
        return draws

    def coming_draws(self, samples: int, of: int | None, step: int) -> Draws:
        """What `draws` gives for the next micro-batch, if that is one of this step."""
        part, parts = data_share(self.trainer)
        start = (self._next_position if step == self._drawing_step else 0) + part * samples
        of = of or parts * samples * self.trainer.accumulate_grad_batches
        return Draws(self.seed, self.stage, step, range(start, start + samples), of)

    def encode(self, batch: EditBatch, instructions: Sequence[str]) -> EditBatch:
        """The batch with latents, and with the condition of these instructions, unless it brings it."""
        roles = [role for role in CLIPS if role in batch]
        videos = dict(zip(roles, self.encode_videos(*(cast(dict, batch)[role] for role in roles)), strict=True))
        condition = batch["condition"] if "condition" in batch else self.condition(batch, instructions)
        return cast(EditBatch, {**batch, **videos, "condition": condition})

    @torch.no_grad()
    def encode_videos(self, *videos: Tensor) -> list[Tensor]:
        """uint8 pixels (B, 3, F, H, W) to latents (B, C, T, h, w) float32; floating point input is latents already.

        Processes that have the same samples share the work, so that all of them must call this at once.
        """
        if any(video.dtype != torch.uint8 for video in videos):
            return [video.float() for video in videos]
        return self._joined(self.encode_own_videos(*videos))

    @torch.no_grad()
    def encode_own_videos(self, *videos: Tensor) -> Callable[[], list[Tensor]]:
        """This process's part of what `encode_videos` does with pixels; what is returned joins the parts."""
        self._place("codec", videos[0].device)
        codec, group = cast(Codec, self.codec), self._sample_group
        # The frozen parts choose their own precision.
        with torch.autocast(videos[0].device.type, enabled=False):
            if group is not None:
                return encode_clips(codec, videos, group)
            latents = [codec.encode(video.float() / 127.5 - 1.0).float() for video in videos]
        return lambda: latents

    @property
    def _sample_group(self) -> SampleGroup | None:
        return sample_group(getattr(self, "_trainer", None))

    @torch.no_grad()
    def condition(self, batch: EditBatch, instructions: Sequence[str]) -> TextCondition:
        """What the transformer is told: B texts, those that the batch brings from a cache not encoded again."""
        return self._joined(self.encode_own_texts(batch, instructions))

    @torch.no_grad()
    def encode_own_texts(self, batch: EditBatch, instructions: Sequence[str]) -> Callable[[], TextCondition]:
        """This process's part of `condition`; what is returned joins the parts."""
        encoder: TextEncoder = self.text_encoder
        known = {}
        if "text" in batch:
            pairs = zip(batch["instruction"], batch["text"], strict=True)
            known = {"": batch["no_text"], **{words: text for words, text in pairs if text is not None}}
            encoder = KnownTexts(known, encoder)
        if not known.keys() >= set(instructions):
            self._place("text_encoder", self.device)
        group = self._sample_group if "text" not in batch and len(instructions) > 1 else None
        with torch.autocast(self.device.type, enabled=False):
            if group is not None:
                return encode_texts(encoder, instructions, group)
            condition = encoder.encode(list(instructions))
        return lambda: condition

    def _joined(self, parts: Callable[[], T]) -> T:
        with torch.autocast(self.device.type, enabled=False):
            return parts()

    def _place(self, name: str, device: torch.device) -> None:
        """Bring a frozen part to the device, once it is used: with latents from a cache none is."""
        if self._places.get(name) != device:
            self.frozen[name].to(device)
            self._places[name] = device

    # ---- validation ----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.held_out = HeldOutLoss()

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """The objective's held-out losses of the samples that are `counted`; noise depends on a sample's id only."""
        draws = Draws(0, "validation", 0, batch["id"])
        losses = self.objective.held_out(self.denoiser, self.encode(batch, batch["instruction"]), draws)
        self.held_out.add(losses, batch.get("counted"))

    def on_validation_epoch_end(self) -> None:
        for name, figure in self.held_out.figures(self).items():
            self.log(name, figure, prog_bar=name == "val/loss", sync_dist=True)

    # ---- optimisation --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        try:
            optimizer = self.optimizer((name, p) for name, p in self.transformer.named_parameters() if p.requires_grad)
        except (ValueError, TypeError) as error:
            raise ValueError(f"The optimizer cannot be used: {error}") from error
        scale_learning_rates(optimizer, self.schedule.parts)
        factor = self.schedule.factor(self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def setup(self, stage: str) -> None:
        if isinstance(folders := self.trainer.strategy.checkpoint_io, CheckpointFolders):
            folders.write_model = self.write_model
            # An adapter is small: it is a part of every editor.
            folders.write_weights = write_weights if self.lora is None else None
        self.references = bool(getattr(parts_of(self.trainer).datamodule, "references", False))
        own = getattr(parts_of(self.trainer).datamodule, "grid", self.grid)
        if own != self.grid:
            raise ValueError(
                f"The data module counts tokens on {own}, the model has {self.grid}: set data.init_args.grid."
            )
        if stage == "fit":  # now: files may change while the run lasts
            self._data = data_record(parts_of(self.trainer).datamodule, self.stage)
        if (check := getattr(parts_of(self.trainer).datamodule, "check_encoders", None)) is not None:
            check(self.frozen)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def pipeline(self) -> EditPipeline:
        """The editor made of this module's parts, with the transformer's current weights."""
        defaults = asdict(self.sampling)
        if self.sampling.shift_tokens is None:
            defaults["shift_tokens"] = self.objective.shift_tokens
        return EditPipeline(
            self.codec,
            self.text_encoder,
            FlowMatchEulerDiscreteScheduler(shift=self.sampling.shift),
            self.transformer,
            prediction=self.objective.predicts,
            defaults=defaults,
            references=self.references,
        )

    def write_model(self, shapes: Mapping[str, Sequence[int]], folder: Path, files: StateFiles) -> None:
        """Write the editor into a checkpoint's folder, see :func:`write_model_folder`."""
        write_model_folder(self.pipeline(), shapes, self.adapted, folder, files)

    def add_adapter(self, weights: str | Path | None) -> None:
        """Freeze the weights, which were loaded from a path, and add the adapter to train, if there is to be one.

        Raises:
            ValueError: an adapter of weights that were never trained.
        """
        if self.lora is None:
            return
        if weights is None:
            raise ValueError(
                "model.start.lora adapts trained weights: name them with model.start.pretrained or --ckpt_path."
            )
        self.adapted = origin_of(weights)
        masks = getattr(self.transformer, "mask_embedder", None)
        if masks is not None and not any(weights.any() for weights in masks.parameters()):
            raise ValueError(
                "An adapter cannot teach these weights masks, of which they know nothing: train them in full, without "
                "model.start.lora, or leave model.transformer.init_args.masks out."
            )
        add_lora(self.transformer, self.lora)

    def load_weights(self, path: str | Path, shared: bool = False) -> str:
        """Take the transformer's weights from a checkpoint or model folder or a weights file: a warm start.

        Args:
            path: where they are.
            shared: every process is to train a part of them, in full precision. In place of weights on the meta device
                they then stay in their file and its dtype, of which the processes of a machine hold one copy.

        Returns:
            what came from where, see `take_weights`; "" where the weights are the transformer's own.

        Raises:
            ValueError: if they belong to a transformer of another shape.
        """
        return take_weights(self.transformer, path, as_stored=shared and self.lora is None)

    @property
    def on_meta(self) -> bool:
        """Whether the transformer has shapes only: its weights are still to be loaded."""
        return on_meta(self.transformer)

    def allocate(self, shared: bool = False) -> None:
        """Give a transformer on the meta device memory with arbitrary values, for a checkpoint that fills it.

        Args:
            shared: as for `load_weights`; the memory is half of what full precision takes.
        """
        if self.on_meta:
            transformer: nn.Module = self.transformer
            if shared:
                transformer.to(torch.bfloat16)
            transformer.to_empty(device="cpu")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STAGE_KEY] = {
            "stage": self.stage,
            "step": self.trainer.global_step,
            "micro_steps": self.trainer.accumulate_grad_batches,
            "seed": self.seed,
            "data": self._data,
            "precision": str(self.trainer.precision),
            **({"weights_dtype": self.lora.weights_dtype} if self.lora is not None else {}),
        }
        checkpoint[SHAPES] = trained_shapes(self.transformer)
        if self.lora is not None:
            checkpoint["state_dict"] = {key: v for key, v in checkpoint["state_dict"].items() if "lora_" in key}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_shapes(checkpoint, self.transformer)
        resplit(checkpoint, self.trainer.accumulate_grad_batches)
