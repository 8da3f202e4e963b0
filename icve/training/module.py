"""The training step of in-context video editing (ICVE; methods, sections 1.1 and 1.2).

Shapes: B samples, C latent channels, T latent frames of h x w, L text tokens.
z_source, x0  clean latents of source and target (B, C, T, h, w)      sigma  noise level in (0, 1) (B,)
x_t           noised target (B, C, T, h, w)                           noise  standard normal, as x0
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from icve.data.edit_region import region_from_latents, region_from_mask, region_weight
from icve.data.share import data_share
from icve.editing.pipeline import EditPipeline
from icve.editing.sampling import Sampling
from icve.flow import Objective, TimestepDensity, flow_loss, interpolate
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.known_texts import pad_texts
from icve.models.lora import LoRA, add_lora
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.data_record import data_record
from icve.training.checkpoints.micro_steps import STAGE_KEY, resplit
from icve.training.checkpoints.model_folder import write_model_folder
from icve.training.checkpoints.starting_weights import check_shapes, on_meta, take_weights, trained_shapes
from icve.training.checkpoints.state_dicts import SHAPES
from icve.training.checkpoints.state_files import StateFiles
from icve.training.distributed.activation_checkpointing import Checkpointing
from icve.training.lightning_types import EditingModule, parts_of
from icve.training.optimization.parameter_groups import scale_learning_rates
from icve.training.optimization.schedule import Schedule, learning_rate_factor
from icve.training.randomness import generator
from icve.training.validation import VALIDATION_SIGMAS, HeldOutLoss


class InContextEditingModule(EditingModule):
    """Trains a transformer to predict the flow from noise to the edited video, given the source video and the text.

    Args:
        transformer: the in-context DiT; the only part that learns, and the only one in `trainer.ckpt`.
        codec: frozen, pixels to latents.
        text_encoder: frozen, instruction to embeddings.
        stage: name of the training stage ("pretrain_240p", "sft", ...). A checkpoint of the same stage is resumed, one
            of another stage only gives its weights. Random draws depend on it.
        optimizer: builds the optimizer from the transformer's named parameters; any torch optimizer class in YAML.
        learning_rates: regular expression, searched in the parameters' names → factor of their learning rate; the first
            that matches counts.
        density: law of the noise level.
        objective: what the transformer predicts, "velocity" or "epsilon".
        instruction_dropout: share of samples whose instruction is replaced by "", for classifier-free guidance; the
            source is never dropped.
        guidance: value embedded in models with a guidance embedding, already times 1000.
        edit_weight: loss weight inside the edited region (1 outside); 1 weighs all latents equally.
        pixel_weight: exponent of each latent channel's share in the pixels as its loss weight: 0 weighs all channels
            alike, 2 as the pixels' squared error does. Needs a codec that knows its `channel_rms`.
        edit_threshold: without a mask in the batch, the region is where source and target latents differ by more.
        warmup_steps: optimizer steps of linear learning-rate warm-up.
        schedule: "constant" or "cosine" (to 0 at trainer.max_steps) after the warm-up.
        sampling: defaults of the saved model.
        seed: of noise, noise level and dropout.
        pretrained: weights that `icve fit` starts the stage from when no --ckpt_path is given; any layout that
            `icve.models.loading.load_transformer` knows.
        lora: train an adapter of these weights instead of the weights themselves (parameter-efficient); checkpoints
            then hold the adapter and the place of the weights it belongs to.
        checkpointing: what the blocks keep for the backward pass, and what they compute again.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        transformer: nn.Module,
        codec: nn.Module,
        text_encoder: nn.Module,
        stage: str,
        optimizer: OptimizerCallable,
        density: TimestepDensity = TimestepDensity(),  # noqa: B008 (frozen)
        objective: Objective = "velocity",
        instruction_dropout: float = 0.1,
        guidance: float = 1000.0,
        edit_weight: float = 1.0,
        pixel_weight: float = 0.0,
        edit_threshold: float = 0.1,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        seed: int = 0,
        pretrained: str | None = None,
        lora: LoRA | None = None,
        checkpointing: Checkpointing = Checkpointing(),  # noqa: B008 (frozen)
        learning_rates: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not stage:
            raise ValueError("A training stage needs a name: set model.stage.")
        if not 0.0 <= instruction_dropout <= 1.0:
            raise ValueError(f"instruction_dropout must be in [0, 1], got {instruction_dropout}.")
        if edit_weight <= 0 or warmup_steps < 0:
            raise ValueError("edit_weight must be positive and warmup_steps not negative.")
        # Asked of the class: a codec with weights would read them now to measure it.
        if pixel_weight and not hasattr(type(codec), "channel_rms"):
            raise ValueError(
                f"pixel_weight needs a codec with channel_rms, which {type(codec).__name__} has not: use 0."
            )
        self.transformer = cast(HunyuanVideoInContextTransformer3DModel, transformer)
        if lora is not None:
            dtype = torch.float32 if lora.weights_dtype == "auto" else getattr(torch, lora.weights_dtype)
            nn.Module.to(transformer, dtype)  # diffusers' own warns of modules to be kept in float32: there are none
        self.lora = lora
        self.adapted: Path | None = None
        # A checkpoint of an adapter does not hold the weights it adapts.
        self.strict_loading = lora is None
        checkpointing.apply(self.transformer)
        # In a tuple, unseen by nn.Module: frozen parts are neither saved, nor optimised, nor put in train mode.
        self._frozen = (codec.eval().requires_grad_(False), text_encoder.eval().requires_grad_(False))
        self.stage = stage
        self.optimizer = optimizer
        self.learning_rates = learning_rates or {}
        self.density = density
        self.objective = objective
        self.instruction_dropout = instruction_dropout
        self.guidance = guidance
        self.edit_weight = edit_weight
        self.pixel_weight = pixel_weight
        self.edit_threshold = edit_threshold
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.sampling = sampling
        self.seed = seed
        self.pretrained = pretrained

        self._data: dict[str, Any] = {}  # what it is trained on
        self.samples = 0  # of this micro-batch on this process
        self._drawing_step, self._next_position = -1, 0

    @property
    def codec(self) -> ModelMixin:
        return cast(ModelMixin, self._frozen[0])

    @property
    def text_encoder(self) -> ModelMixin:
        return cast(ModelMixin, self._frozen[1])

    # ---- the training step -------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One micro-batch: source and target uint8 (B, 3, F, H, W), or latents and texts from a cache
        (:func:`icve.data.cache.cached_rows.collate_cached`); instruction and id lists of str; weight of its loss in the
        step's (1 unless given). Some steps need fewer micro-batches than others: the rest have no samples.
        """
        self.samples = len(batch["id"])
        if not self.samples:
            return {"loss": torch.zeros((), device=self.device, requires_grad=True), "samples": 0, "tokens": 0}
        z_source, x0 = self.encode_video(batch["source"]), self.encode_video(batch["target"])
        sigma, noise, dropped = self.draw(x0)
        text = self.condition(batch, dropped)

        x_t = interpolate(x0, noise, sigma)  # (1 - sigma) x0 + sigma noise
        prediction, tokens = self.predict(x_t, z_source, sigma, text)
        weight = self.loss_weight(batch.get("mask"), z_source, x0, batch.get("region"))
        loss = flow_loss(prediction, x0, noise, sigma, self.objective, weight).mean()  # |v - (noise - x0)|^2

        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        loss = loss * batch.get("weight", 1.0)
        return {"loss": loss, "samples": len(x0), "tokens": tokens, "latents": tuple(x0.shape[2:])}

    def draw(self, x0: Tensor) -> tuple[Tensor, Tensor, list[bool]]:
        """Noise level (B,), noise (like x0) and whether the instruction is dropped, of this micro-batch's samples."""
        step = self.trainer.global_step
        part, parts = data_share(self.trainer)
        if step != self._drawing_step:
            self._drawing_step, self._next_position = step, 0
        start = self._next_position + part * len(x0)
        self._next_position += parts * len(x0)

        def source(position: int, purpose: str) -> torch.Generator:
            return generator(self.seed, self.stage, step, position, purpose)

        positions = range(start, start + len(x0))
        sigma = torch.tensor([self.density.sample(source(p, "sigma")) for p in positions], device=x0.device)
        # Drawn on the CPU, so that every device trains on the same noise.
        noise = torch.stack([torch.randn(x0.shape[1:], generator=source(p, "noise")) for p in positions]).to(x0.device)
        dropout = [float(torch.rand((), generator=source(p, "instruction dropout"))) for p in positions]
        return sigma, noise, [value < self.instruction_dropout for value in dropout]

    def predict(
        self, x_t: Tensor, z_source: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, int]:
        """The transformer's prediction (B, C, T, h, w), and how many tokens it attended to.

        Args:
            text: embeddings (B, L, Dt), mask (B, L) and pooled embedding (B, Dp), see :meth:`condition`.
        """
        dtype = next(self.transformer.parameters()).dtype
        embeddings, mask, pooled = text
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full_like(sigma, self.guidance)
        prediction = self.transformer(
            hidden_states=x_t.to(dtype),
            source_hidden_states=z_source.to(dtype),
            timestep=1000.0 * sigma,
            encoder_hidden_states=embeddings.to(x_t.device, dtype),
            encoder_attention_mask=mask,
            pooled_projections=pooled.to(x_t.device, dtype),
            guidance=guidance,
        )
        patch = self.transformer.config.patch_size**2 * self.transformer.config.patch_size_t
        latents_per_channel = (x_t.numel() + z_source.numel()) // x_t.shape[1]
        return prediction, latents_per_channel // patch + int(mask.sum())

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """uint8 pixels (B, 3, F, H, W) to latents (B, C, T, h, w) float32; floating point input is latents already."""
        if video.dtype != torch.uint8:
            return video.float()
        # The frozen parts choose their own precision.
        with torch.autocast(video.device.type, enabled=False):
            return self.codec.encode(video.float() / 127.5 - 1.0).float()

    def condition(self, batch: dict[str, Any], dropped: Sequence[bool] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, L, Dt), mask (B, L) and pooled embedding (B, Dp) of a batch's instructions, "" where dropped.

        From the batch's cached texts if it has them: L is then, as from the text encoders, the length of the longest.
        """
        dropped = [False] * len(batch["instruction"]) if dropped is None else dropped
        if "text" not in batch:
            texts = ["" if drop else words for words, drop in zip(batch["instruction"], dropped, strict=True)]
            return self.encode_text(texts)
        nothing = batch["no_text"], batch["no_pooled"]
        cached = zip(batch["text"], batch["pooled"], strict=True)
        return pad_texts([nothing if drop else text for text, drop in zip(cached, dropped, strict=True)])

    @torch.no_grad()
    def encode_text(self, text: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, L, Dt), mask (B, L) and pooled embedding (B, Dp) of B instructions."""
        with torch.autocast(self.device.type, enabled=False):
            return self.text_encoder.encode(text)

    def loss_weight(
        self, mask: Tensor | None, z_source: Tensor, x0: Tensor, region: Tensor | None = None
    ) -> Tensor | None:
        """Loss weights that broadcast to (B, C, T, h, w), or None when every latent counts the same.

        Args:
            mask: edit mask in pixels (B, 1, F, H, W).
            region: the same on the latent grid (B, 1, T, h, w), from a cache.
        """
        weight = None
        if self.pixel_weight:
            weight = self.codec.channel_rms.to(x0.device).reshape(1, -1, 1, 1, 1) ** self.pixel_weight
        if self.edit_weight == 1.0:
            return weight
        if region is None and mask is not None:
            region = region_from_mask(mask, (x0.shape[2], x0.shape[3], x0.shape[4]))
        elif region is None and z_source.shape == x0.shape:
            region = region_from_latents(z_source, x0, self.edit_threshold)
        elif region is None:
            return weight
        region = region_weight(region, self.edit_weight)
        return region if weight is None else region * weight

    # ---- validation ----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.held_out = HeldOutLoss(self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss at fixed noise levels of the samples that are `counted` (:class:`icve.data.pairs.PairsDataModule`)."""
        self.held_out.add(self.held_out_losses(batch), batch.get("counted"))

    def held_out_losses(self, batch: dict[str, Any]) -> Tensor:
        """Losses (levels, B) of a batch's samples; the noise depends on a sample's id only, so that runs compare."""
        z_source, x0 = self.encode_video(batch["source"]), self.encode_video(batch["target"])
        text, losses = self.condition(batch), []
        for level in VALIDATION_SIGMAS:
            draws = [generator(0, "validation", 0, name, f"noise at {level}") for name in batch["id"]]
            noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in draws]).to(x0.device)
            sigma = torch.full((len(x0),), level, device=x0.device)
            prediction, _ = self.predict(interpolate(x0, noise, sigma), z_source, sigma, text)
            losses.append(flow_loss(prediction, x0, noise, sigma, self.objective))
        return torch.stack(losses)

    def on_validation_epoch_end(self) -> None:
        for name, figure in self.held_out.figures(self).items():
            self.log(name, figure, prog_bar=name == "val/loss", sync_dist=True)

    # ---- optimisation --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        try:
            optimizer = self.optimizer((name, p) for name, p in self.transformer.named_parameters() if p.requires_grad)
        except (ValueError, TypeError) as error:
            raise ValueError(f"The optimizer cannot be used: {error}") from error
        scale_learning_rates(optimizer, self.learning_rates)
        factor = learning_rate_factor(self.schedule, self.warmup_steps, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def setup(self, stage: str) -> None:
        if isinstance(folders := self.trainer.strategy.checkpoint_io, CheckpointFolders):
            folders.write_model = self.write_model
        if stage == "fit":  # now: files may change while the run lasts
            self._data = data_record(parts_of(self.trainer).datamodule, self.stage)
        cache = getattr(parts_of(self.trainer).datamodule, "latent_cache", None)
        if cache is not None:  # the frozen parts have done their work: they stay where they are
            cache.check_encoders(self.codec, self.text_encoder)
            return
        for module in self._frozen:
            module.to(self.trainer.strategy.root_device)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def pipeline(self) -> EditPipeline:
        """The editor made of this module's parts, with the transformer's current weights."""
        return EditPipeline(
            self.codec,
            self.text_encoder,
            FlowMatchEulerDiscreteScheduler(shift=self.sampling.shift),
            self.transformer,
            objective=self.objective,
            defaults=asdict(self.sampling),
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
            raise ValueError("model.lora adapts trained weights: name them with model.pretrained or --ckpt_path.")
        self.adapted = Path(weights).resolve()
        add_lora(self.transformer, self.lora)

    def load_weights(self, path: str | Path, shared: bool = False) -> None:
        """Take the transformer's weights from a checkpoint or model folder or a weights file: a warm start.

        Args:
            path: where they are.
            shared: every process is to train a part of them, in full precision. In place of weights on the meta device
                they then stay in their file and its dtype, of which the processes of a machine hold one copy.

        Raises:
            ValueError: if they belong to a transformer of another shape.
        """
        take_weights(self.transformer, path, as_stored=shared and self.lora is None)

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
