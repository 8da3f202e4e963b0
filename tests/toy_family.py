"""A toy family, objective, transform and metric, for the proof that nothing else is touched; see docs/extend.md."""

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from icve.data.text_condition import TextCondition
from icve.data.transforms import LatentTransform
from icve.evaluation.metrics.metric import Metric
from icve.flow import flow_loss, interpolate
from icve.models.attention import joint_attention
from icve.models.denoiser import InContextTransformer
from icve.models.family import Base, Family
from icve.models.layout import Grid, Segment, pack
from icve.models.rope import norm_rotate
from icve.training.objectives.objective import Losses, Objective


# --- family: a transformer ---
class ToyBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(heads, width // heads))  # normalises over all heads

    def forward(self, x, rope, layout):
        query, key, value = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key = (norm_rotate(part, self.scale, rope) for part in (query, key))
        attention = joint_attention(query, key, value, layout)
        attention.attend()
        return x + self.to_out(attention.packed())


class ToyTransformer(InContextTransformer, ModelMixin):
    _supports_gradient_checkpointing = True
    _repeated_blocks = ["ToyBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self, in_channels=16, num_attention_heads=2, attention_head_dim=8, num_layers=2, text_dim=12, later=False
    ):
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.patch = (1, 2, 2)
        self.patchify = nn.Conv3d(in_channels, width, self.patch, self.patch)
        self.words, self.time = nn.Linear(text_dim, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(ToyBlock(width, num_attention_heads) for _ in range(num_layers))
        self.unpatchify = nn.Linear(width, 4 * in_channels)
        self.extra = nn.Linear(2, 2) if later else None  # what a later model of the family adds
        self.gradient_checkpointing = False

    def forward(self, video, source, sigma, text):
        grid = Grid((video.shape[2], video.shape[3] // 2, video.shape[4] // 2))
        clean, noised = (Segment(n, grid.tokens, t, grid) for n, t in (("source", "zero"), ("target", "target")))
        segments = [clean, noised, Segment("text", text.embeddings.shape[1], shared=True)]
        lengths = tuple(text.mask.sum(1).tolist())
        layout = pack(segments, lengths, video.device, video.dtype, self.config.num_attention_heads)
        rope = layout.rotations((2, 2, self.config.attention_head_dim - 4), 100.0, video.device)
        target = self.patchify(video).flatten(2).mT + self.time(sigma[:, None, None].to(video.dtype))
        x = torch.cat([self.patchify(source).flatten(2).mT, target], 1)
        x = x if layout.shards is None else layout.shards.take(x, 1)
        x = torch.cat([x, self.words(text.embeddings)], 1)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, rope, layout)
            else:
                x = block(x, rope, layout)
        x = self.unpatchify(x[:, layout.section("target")])
        x = x if layout.shards is None else layout.shards.gather(x, 1)
        return x.unflatten(1, grid.size).unflatten(-1, (-1, 2, 2)).permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)

    def arguments(self, x, sigma, text, context, guidance):
        return {"video": x["video"], "source": context["source"], "sigma": sigma, "text": text}

    def named(self, output):
        return {"video": output}

    def blank_text(self, length):
        mask = torch.ones(1, length, dtype=torch.bool, device="cpu")
        return TextCondition(torch.zeros(1, length, self.config.text_dim), mask)


# --- family: how its weights are stored ---
EXPORTS: dict = {}


def recognise(config, tensors):
    return config.get("_class_name") == "ToyTransformer"


def locate(folder):
    return None


def read(config, tensors, overrides):
    return {name: value for name, value in config.items() if name[0] != "_"} | overrides, dict


def mismatch(expected, given):
    wrong = [name for name in expected if name not in given or given[name].shape != expected[name].shape]
    return f"'{wrong[0]}' does not fit" if wrong else None


def start_from(name):
    return None if name.startswith("extra.") else name


def write_tiny(folder):
    ToyTransformer().save_pretrained(folder / "transformer")


# --- family: the entry ---
FAMILY = Family(
    name="toy",
    transformer="tests.toy_family.ToyTransformer",
    weights="tests.toy_family",
    tiny={"toy": "tests.toy_family.write_tiny"},
    start_from="tests.toy_family.start_from",
    blocks={"num_layers": "blocks"},
    lora_targets=r"blocks\.\d+\.to_(qkv|out)",
    bases=(Base("Toy weights", "https://example.org/toy", "Toys for all."),),
    aliases=("toy",),
)


# --- objective ---
class NoisedSource(Objective):
    """Predict the flow, with noise on the source too; a sum of two losses."""

    def __init__(self, amount: float = 0.1):
        self.amount = amount

    def loss(self, denoiser, batch, draws):
        x0 = batch["target"]
        sigma, noise = torch.tensor(draws.uniform("sigma"), device=x0.device), draws.normal("noise", x0)
        context = {"source": batch["source"] + self.amount * draws.normal("source noise", x0)}
        x_t = {"video": interpolate(x0, noise, sigma)}
        prediction = denoiser.denoise(x_t, sigma, batch["condition"], context)["video"]
        flow, size = flow_loss(prediction, x0, noise, sigma), 0.01 * prediction.square().flatten(1).mean(1)
        return Losses(flow + size, denoiser.tokens(x_t, batch["condition"], context), {"flow": flow, "size": size})

    def held_out(self, denoiser, batch, draws):
        x0, sigma = batch["target"], torch.full((len(batch["id"]),), 0.5)
        noise = draws.normal("noise", x0)
        x_t, context = {"video": interpolate(x0, noise, sigma)}, {"source": batch["source"]}
        prediction = denoiser.denoise(x_t, sigma, batch["condition"], context)["video"]
        half = flow_loss(prediction, x0, noise, sigma)
        return Losses(half, parts={"half": half})


# --- transform ---
class Undo(LatentTransform):
    """Some pairs the other way round."""

    texts = ("undo the edit",)

    def __init__(self, share: float = 0.5):
        self.share = share

    def __call__(self, sample, rng):
        if rng.random() >= self.share:
            return sample
        return sample | {"source": sample["target"], "target": sample["source"], "instruction": self.texts[0]}

    def on_latents(self, sample, rng):
        return self(sample, rng)


# --- metric ---
class Reddened(Metric):
    """How much redder an edit is than its source, in levels of 0 to 255; for instructions that ask for red."""

    needs = ("source", "edited", "instruction")

    def __init__(self, word: str = "red"):
        self.word = word

    def reset(self, clip):
        self.applies = self.word in clip.texts["instruction"]
        self.change, self.pixels = 0.0, 0

    def update(self, source, edited):
        self.change += float(edited[..., 0].sum(dtype=np.float64) - source[..., 0].sum(dtype=np.float64))
        self.pixels += edited[..., 0].size

    def compute(self):
        return {"reddened": self.change / self.pixels if self.applies else None}
