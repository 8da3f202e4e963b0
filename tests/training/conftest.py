"""A model, data and a trainer small enough that a training step takes milliseconds."""

import inspect
import json
from functools import partial

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import yaml

from icve.data.media.video import write_video
from icve.data.share import batches_done
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.wan.codec import WanCodec
from icve.models.wan.text import WanTextEncoder
from icve.models.wan.transformer import WanInContextTransformer3DModel
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.module import InContextEditingModule, Sampling
from icve.training.objectives.in_context import InContext
from icve.training.optimization.optimizers import MuonAdamW
from tests.training.runs import start

WORDS = ("make the red circle blue", "remove it", "add a green square on the left", "turn it into a watercolour")
SIZE = 16  # pixels: 2x2 latents, one token per frame


class TinyPairs(L.LightningDataModule):
    """Random clips; batch n is a pure function of n, as in icve.data, and begins where the trainer is."""

    def __init__(self, batch_size=2, frames=5, mask=False, validation=0, poison=()):
        super().__init__()
        self.batch_size, self.frames, self.mask, self.validation = batch_size, frames, mask, validation
        self.poison = set(poison)  # numbers of batches whose latents are not finite

    def batch(self, number):
        g = torch.Generator().manual_seed(1000 + number)
        shape = (self.batch_size, 3, self.frames, SIZE, SIZE)
        batch = {
            "source": torch.randint(0, 256, shape, generator=g, dtype=torch.uint8),
            "target": torch.randint(0, 256, shape, generator=g, dtype=torch.uint8),
            "instruction": [WORDS[(number + i) % len(WORDS)] for i in range(self.batch_size)],
            "id": [f"{number}-{i}" for i in range(self.batch_size)],
        }
        if self.mask:
            batch["mask"] = torch.rand(self.batch_size, 1, *shape[2:], generator=g) > 0.9
        if number in self.poison:
            latents = torch.full((self.batch_size, 16, 2, SIZE // 8, SIZE // 8), float("nan"))
            batch["source"] = batch["target"] = latents
        return batch

    def train_dataloader(self):
        def stream():
            number = batches_done(self.trainer)
            while True:
                yield self.batch(number)
                number += 1

        return torch.utils.data.DataLoader(_Stream(stream), batch_size=None)

    def val_dataloader(self):
        return as_loader([self.batch(-1 - number) for number in range(self.validation)])


def as_loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None) if batches else []


def cut(batch, *indices):
    """Some of a batch's samples."""
    return {name: [v[i] for i in indices] if isinstance(v, list) else v[list(indices)] for name, v in batch.items()}


def cached_texts(module, batch):
    """The batch with what icve.data.cache.cached_rows adds to it."""
    texts = [module.text_encoder.encode([words]).alone(0) for words in batch["instruction"]]
    return batch | {"text": texts, "no_text": module.text_encoder.encode([""]).alone(0)}


class _Stream(torch.utils.data.IterableDataset):
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return self.make()


# Of each family: its class and the smallest configuration that fits the weightless parts.
TRANSFORMERS = {
    "hunyuan_video": (
        HunyuanVideoInContextTransformer3DModel,
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_single_layers": 1}
        | {"num_refiner_layers": 1, "rope_axes_dim": (2, 4, 2), "text_embed_dim": 12, "pooled_projection_dim": 10}
        | {"guidance_embeds": False},
    ),
    "wan": (
        WanInContextTransformer3DModel,
        {"num_attention_heads": 4, "attention_head_dim": 8, "ffn_dim": 24, "num_layers": 2, "text_dim": 12}
        | {"freq_dim": 16},
    ),
}


def tiny_transformer(seed=0, family="hunyuan_video", **changes):
    torch.manual_seed(seed)
    kind, config = TRANSFORMERS[family]
    model = kind(**{**config, **changes})
    with torch.no_grad():  # a fresh model predicts zero everywhere and has few gradients
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def weightless():
    """The frozen parts that go with the tiny transformers."""
    return {"codec": DCTCodec(), "text_encoder": HashedTextEncoder(text_dim=12, pooled_dim=10)}


def whole_wan(weights):
    """What `make_module` trains a tiny Wan of, with the codec and the text encoder of these weights (`tiny_wan`)."""
    codec, texts = WanCodec(str(weights / "vae")), WanTextEncoder(str(weights / "text_encoder"), dtype="float32")
    channels = codec.latent_channels
    sizes = {"text_dim": texts.text_width, "in_channels": channels, "out_channels": channels}
    return {
        "transformer": tiny_transformer(family="wan", **sizes),
        "frozen": {"codec": codec, "text_encoder": texts},
    }


@pytest.fixture
def make_module():
    def make(stage="tiny", seed=0, transformer=None, frozen=None, **options):
        for_objective = inspect.signature(InContext).parameters
        settings = {name: options.pop(name) for name in for_objective if name in options}
        return InContextEditingModule(
            transformer or tiny_transformer(seed),
            frozen or weightless(),
            options.pop("objective", None) or InContext(**settings),
            stage=stage,
            seed=seed,
            **{
                "optimizer": partial(MuonAdamW, lr=1e-2),
                "sampling": Sampling(2, 1.0, 1.0, negative_prompt="", num_frames=5, height=SIZE, width=SIZE),
                **options,
            },
        )

    return make


@pytest.fixture
def make_data():
    return TinyPairs


@pytest.fixture
def make_trainer(tmp_path):
    def make(max_steps, callbacks=(), folder=None, **options):
        return L.Trainer(
            **{
                "max_steps": max_steps,
                "default_root_dir": folder or tmp_path,
                "callbacks": list(callbacks),
                "plugins": [CheckpointFolders()],
                "accelerator": "cpu",
                "devices": 1,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "check_val_every_n_epoch": None,
                "val_check_interval": 1000,
                "enable_checkpointing": any(hasattr(callback, "keep_last") for callback in callbacks),
                **options,
            }
        )

    return make


class Losses(L.Callback):
    """Loss and ids of every micro-batch, the learning rate, and the steps validated at."""

    def __init__(self):
        self.lines, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.lines.append((float(outputs["loss"]), tuple(batch["id"]), trainer.optimizers[0].param_groups[0]["lr"]))

    def on_validation_end(self, trainer, pl_module):
        self.validated.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


@pytest.fixture
def make_losses():
    return Losses


TINY_YAML = """
seed_everything: 0
trainer:
  default_root_dir: {run}
  max_steps: 4
  accelerator: cpu
  devices: 1
  precision: 32
  enable_progress_bar: false
  log_every_n_steps: 1
  check_val_every_n_epoch: null
  val_check_interval: 4
  callbacks:
    - class_path: icve.training.callbacks.ema.EMA
    - class_path: icve.training.callbacks.checkpoints.Checkpoints
      init_args: {{every_n_steps: 2, keep_last: 0}}
    - class_path: icve.training.callbacks.nonfinite.SkipNonFinite
    - class_path: icve.training.callbacks.monitor.TrainingMonitor
model:
  stage: tiny
  seed: ${{seed_everything}}
  transformer:
    class_path: icve.models.hunyuan_video.transformer.HunyuanVideoInContextTransformer3DModel
    init_args:
      num_attention_heads: 2
      attention_head_dim: 8
      num_layers: 1
      num_single_layers: 1
      num_refiner_layers: 1
      rope_axes_dim: [2, 4, 2]
      text_embed_dim: 12
      pooled_projection_dim: 10
      guidance_embeds: false
  frozen:
    codec:
      class_path: icve.models.weightless.dct.DCTCodec
    text_encoder:
      class_path: icve.models.weightless.hashed.HashedTextEncoder
      init_args: {{text_dim: 12, pooled_dim: 10}}
  optimizer:
    class_path: icve.training.optimization.optimizers.MuonAdamW
    init_args: {{lr: 0.01}}
  schedule: {{warmup_steps: 3}}
  objective:
    class_path: icve.training.objectives.in_context.InContext
    init_args: {{instruction_dropout: 0.3, edit_weight: 2.0}}
  sampling: {{steps: 2, guidance_scale: 1.0, shift: 1.0, num_frames: 5, height: 32, width: 32}}
data:
  class_path: icve.data.paired_edits.PairedEditsDataModule
  init_args:
    manifest: {manifest}
    val_manifest: {manifest}
    buckets: [[32, 32, 5]]
    batch_size: 2
    seed: ${{seed_everything}}
"""


def as_wan(config, weights):
    """Change a configuration file to train the tiny Wan of these weights, with its codec and its text encoder."""
    values = yaml.safe_load(config.read_text())
    written = json.loads((weights / "transformer" / "config.json").read_text())
    names = ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers", "text_dim", "in_channels")
    sizes = {name: written[name] for name in (*names, "out_channels")}
    values["model"]["transformer"] = {
        "class_path": "icve.models.wan.transformer.WanInContextTransformer3DModel",
        "init_args": sizes,
    }
    values["model"]["frozen"] = {
        name: {"class_path": f"icve.models.wan.{kind}", "init_args": {"pretrained": str(weights / folder)}}
        for name, kind, folder in (
            ("codec", "codec.WanCodec", "vae"),
            ("text_encoder", "text.WanTextEncoder", "text_encoder"),
        )
    }
    values["data"]["init_args"]["grid"] = {"spatial": 16 if written["in_channels"] == 48 else 8}
    config.write_text(yaml.safe_dump(values))


def write_pairs(folder, count, frames, size):
    """So many pairs of real video files with square pictures of blocks of noise; returns their manifest."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(count):
        row = {"id": f"pair{number}", "instruction": WORDS[number % len(WORDS)]}
        for role in ("source", "target"):
            blocks = generator.integers(0, 256, (frames, size // 8, size // 8, 3), dtype=np.uint8)
            write_video(folder / f"{role}{number}.mp4", blocks.repeat(8, axis=1).repeat(8, axis=2), 8.0)
            row |= {f"{role}_path": f"{role}{number}.mp4"}
        lines.append(json.dumps(row))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory):
    """Five pairs of real video files."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 5, 5, 32)


@pytest.fixture
def tiny_yaml(tmp_path, tiny_manifest):
    """A configuration that trains in a second, into tmp_path/run."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_YAML.format(run=tmp_path / "run", manifest=tiny_manifest))
    return path


@pytest.fixture
def started(watched):
    """Starts `icve fit` as its own process, which is not left running when the test fails."""

    def started(config, run, *arguments, **options):
        return watched(start(config, "--trainer.default_root_dir", run, *arguments, **options))

    return started
