"""What a training step costs on one GPU, and what stands beside it: one command, under ten minutes, tables at the end.

    python tools/bench_gpu.py                               # blocks of the 13B model, tokens of the 480p bucket
    python tools/bench_gpu.py --device cpu --tiny           # the same on tiny sizes anywhere: that it runs

A step is a forward and a backward pass of one sample through 2 + 4 blocks, with weights in 16 bits, as ZeRO and FSDP
compute; that of 20 + 40 blocks is extrapolated from those of 1 + 2 and of 2 + 4. MFU are its FLOPs (no block is
counted twice; a fused attention's backward pass is 2.5 forward ones) over its seconds, by those of a large bfloat16
matrix product in the same run. Rows come in the order of
their weight: where the time ends, the rest says so, and so does a row that runs out of memory. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from icve.runtime.gpu_allocator import set_up_allocator

STARTED = time.monotonic()  # imports take their part of the time
set_up_allocator()

import bench_encode_ahead  # noqa: E402 (the allocator is set up before torch is there)
import bench_transformer  # noqa: E402
import lightning.pytorch as L  # noqa: E402
import torch  # noqa: E402
from bench_checkpointing import Step  # noqa: E402
from diffusers.utils import logging  # noqa: E402
from torch import nn  # noqa: E402

from icve.models import frozen_codec  # noqa: E402
from icve.models.attention_kernels import attention_kernel  # noqa: E402
from icve.models.counting import Sample, training_flops  # noqa: E402
from icve.models.hunyuan_video import text as texts  # noqa: E402
from icve.models.hunyuan_video.codec import HunyuanVideoCodec  # noqa: E402
from icve.models.hunyuan_video.tiny import write_tiny  # noqa: E402
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel  # noqa: E402
from icve.models.weightless.dct import DCTCodec  # noqa: E402
from icve.models.weightless.hashed import HashedTextEncoder  # noqa: E402
from icve.preflight.plan_report import table  # noqa: E402
from icve.training.callbacks.checkpoints import Checkpoints  # noqa: E402
from icve.training.callbacks.float8 import multiplies_float8, use_float8  # noqa: E402
from icve.training.checkpoints.checkpoint_io import CheckpointFolders  # noqa: E402
from icve.training.distributed.activation_checkpointing import Checkpointing  # noqa: E402
from icve.training.module import InContextEditingModule  # noqa: E402
from icve.training.objectives.in_context import InContext  # noqa: E402

SHORT, LONG, WHOLE = (1, 2), (2, 4), (20, 40)  # double- and single-stream blocks
GOAL_RATIO, GOAL_SHARE = 1.25, 0.60  # against diffusers' model, and of a matrix product's rate


@dataclass(frozen=True)
class Sizes:
    """What is measured: of the model, of a sample, of the matrix product, and of the clips that are encoded."""

    heads: int = 24
    head_dim: int = 128
    grid: tuple[int, int, int] = (20, 30, 48)  # target tokens along t, h, w: 480 x 768 pixels, 77 frames
    text: int = 256
    matmul: int = 8192
    clip: tuple[int, int, int] = (77, 480, 768)
    rounds: int = 2
    optimizer: int = 2**28


TINY = Sizes(2, 32, (1, 4, 4), 4, 64, (5, 32, 32), 1, 2**12)


class TimeUp(BaseException):  # no Exception: the compiler would wrap it
    """The time that the tool was given has passed, or somebody ends it."""


class Cells:
    """Runs measurements one after the other while there is time; what fails says so in its place."""

    def __init__(self, minutes: float) -> None:
        self.end = STARTED + 60 * minutes
        signal.signal(signal.SIGTERM, self._stop)

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """What the function returns, or in words why there is nothing."""
        started = time.monotonic()
        try:
            with self._limited():
                result = function()
        except torch.OutOfMemoryError:
            result = "out of memory"
        except TimeUp:
            result = "no time left"
        except Exception as error:
            result = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"{time.monotonic() - started:6.1f} s  {name}: {result}", file=sys.stderr, flush=True)
        return result

    def _stop(self, *_: Any) -> None:
        self.end = 0.0
        raise TimeUp

    @contextmanager
    def _limited(self) -> Iterator[None]:
        if (left := self.end - time.monotonic()) <= 0:
            raise TimeUp
        handler, timer = signal.signal(signal.SIGALRM, self._stop), signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)


@dataclass(frozen=True)
class Timing:
    """Seconds of a step with `SHORT` and with `LONG` blocks, and with these the most bytes beside weights, if known."""

    short: float
    long: float
    peak: int | None

    @property
    def whole(self) -> float:
        """Seconds with `WHOLE` blocks, which are as many of each kind to every further one."""
        return self.short + (WHOLE[0] - SHORT[0]) * (self.long - self.short)


def timing(model: nn.Module, step: Callable[[], None], device: torch.device, rounds: int, warm_up: int = 1) -> Timing:
    """Measure a step of a model with `LONG` blocks; `SHORT` are the first of them."""
    stacks = {name: getattr(model, name) for name in ("transformer_blocks", "single_transformer_blocks")}
    medians, peak = {}, None
    for depth in (LONG, SHORT):
        for (name, blocks), count in zip(stacks.items(), depth, strict=True):
            setattr(model, name, nn.ModuleList(list(blocks)[:count]))
        for _ in range(warm_up):
            step()
        if depth == LONG and device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            peak = torch.cuda.max_memory_allocated() - before
        medians[depth] = statistics.median(bench_transformer.seconds(step, device) for _ in range(rounds))
    for name, blocks in stacks.items():
        setattr(model, name, blocks)
    return Timing(medians[SHORT], medians[LONG], peak)


def own_step(args: Namespace, mode: str, compiled: bool, float8: bool) -> Timing:
    """A step of the in-context model."""
    size, device = args.size, args.device
    step = Step(size.heads, size.head_dim, LONG, size.grid, size.text, args.dtype, str(device))
    if float8:
        use_float8(step.model, device, emulate=device.type == "cpu")
    torch.compiler.reset()
    Checkpointing(mode).apply(step.model, compiled, backend="aot_eager" if args.tiny else "inductor")

    def run() -> None:
        step.model(**step.inputs).float().square().mean().backward()

    return timing(step.model, run, device, size.rounds, warm_up=2 if compiled else 1)


def peer_step(args: Namespace, mode: str) -> Timing:
    """A step of diffusers' model of the same size, with a video of as many tokens as source and target have."""
    size = args.size
    wanted = Namespace(device=str(args.device), heads=size.heads, head_dim=size.head_dim, layers=LONG, text=size.text)
    wanted.grid, wanted.batch = size.grid, 1
    run = bench_transformer.build(wanted, args.dtype, size.text)["diffusers"]
    if mode == "full":
        run.model.enable_gradient_checkpointing()
    return timing(run.model, run.backward, args.device, size.rounds)


def flops(size: Sizes) -> int:
    """Of a step with `WHOLE` blocks."""
    frames, height, width = size.grid
    side = size.head_dim * 3 // 8 // 2 * 2  # as in `Step`
    config = {
        "num_attention_heads": size.heads,
        "attention_head_dim": size.head_dim,
        "num_layers": WHOLE[0],
        "num_single_layers": WHOLE[1],
        "rope_axes_dim": (size.head_dim - 2 * side, side, side),
        "text_embed_dim": 1024,
        "guidance_embeds": False,
    }
    sample = Sample(frames, 2 * height, 2 * width, size.text)
    return training_flops(HunyuanVideoInContextTransformer3DModel, config, sample)


# ---- beside the step -------------------------------------------------------------------------------------------------


def adamw(args: Namespace) -> str:
    """Seconds of AdamW's fused step."""
    weights = nn.Parameter(torch.zeros(args.size.optimizer, device=args.device))
    weights.grad = torch.ones_like(weights)
    optimizer = torch.optim.AdamW([weights], fused=True)
    optimizer.step()
    seconds = statistics.median(bench_transformer.seconds(optimizer.step, args.device) for _ in range(args.size.rounds))
    return f"{seconds * 1e9 / weights.numel():.3f} s per 10⁹ parameters"


def random_fill(model: nn.Module, folder: Path, anchor: str, dtype: torch.dtype, device: torch.device) -> None:
    """In the place of `icve.models.weight_files.fill`: random weights on the device."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    state = {n: torch.empty(t.shape, dtype=dtype, device=device).normal_(std=0.02) for n, t in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.to(device)


@contextmanager
def weights_folder(tiny: bool) -> Iterator[Path]:
    """A folder that the frozen parts take for HunyuanVideo's: tiny files, configurations of the real size."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tiny(folder)
        real = {"vae": {"_class_name": "AutoencoderKLHunyuanVideo"}}
        real |= {"text_encoder": {"model_type": "llama", **texts.LLAMA}}
        real |= {"text_encoder_2": {"model_type": "clip_text_model", **texts.CLIP}}
        for name, config in {} if tiny else real.items():
            (folder / name / "config.json").write_text(json.dumps(config))
        with patch.object(frozen_codec, "fill", random_fill), patch.object(texts, "fill", random_fill):
            yield folder


def encode_clips(args: Namespace) -> str:
    """Seconds of the codec for source and target."""
    frames, height, width = args.size.clip
    with weights_folder(args.tiny) as folder:
        codec = HunyuanVideoCodec(str(folder / "vae")).to(args.device)
        pair = torch.rand(2, 3, frames, height, width, device=args.device) * 2 - 1
        codec.encode(pair[:1])
        seconds = bench_transformer.seconds(lambda: codec.encode(pair), args.device)
    return f"{seconds:.3f} s"


def encode_text(args: Namespace) -> str:
    """Seconds of the text encoders for one text."""
    with weights_folder(args.tiny) as folder:
        encoder = texts.HunyuanTextEncoder(str(folder / "text_encoder"), str(folder / "text_encoder_2"))
        encoder.to(args.device)
        encode = partial(encoder.encode, ["x" * 255])
        encode()
        seconds = statistics.median(bench_transformer.seconds(encode, args.device) for _ in range(args.size.rounds))
    return f"{seconds:.3f} s"


def step_with_encoding(args: Namespace) -> str:
    """Seconds of a whole step of `LONG` blocks whose clips are encoded in its turn, and beside the one before it."""
    size, device = args.size, args.device
    step = Step(size.heads, size.head_dim, LONG, size.grid, size.text, args.dtype, str(device))
    Checkpointing("full").apply(step.model)
    precision = {torch.bfloat16: "bf16-true", torch.float16: "16-true"}.get(args.dtype, "32-true")
    with weights_folder(args.tiny) as folder:
        codec = HunyuanVideoCodec(str(folder / "vae"))
        module = bench_encode_ahead.bench_module(step.model, codec)
        costs = [
            bench_encode_ahead.step_cost(
                module, bench_encode_ahead.Clips(1, size.clip), ahead, device, steps=size.rounds, precision=precision
            )
            for ahead in (False, True)
        ]
    plain, ahead = costs
    told = f"{plain.seconds:.3f} s, ahead {ahead.seconds:.3f} s, ratio {ahead.seconds / plain.seconds:.2f}"
    if plain.peak is None or ahead.peak is None:
        return told
    return f"{told}; peak {plain.peak / 2**30:.1f} and {ahead.peak / 2**30:.1f} GiB"


class Latents(L.LightningDataModule):
    """Steps of one tiny sample: a checkpoint's size does not depend on it."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        latents = torch.zeros(1, 16, 1, 4, 4)
        batch = {"source": latents, "target": latents, "instruction": [""], "id": ["0"]}
        return torch.utils.data.DataLoader([batch] * 4, batch_size=None)


class TimedCheckpoints(Checkpoints):
    """Notes how long training stands still for each checkpoint."""

    def save(self, trainer: L.Trainer, ends: bool = False) -> None:
        device = trainer.strategy.root_device
        self.stopped = bench_transformer.seconds(lambda: super(TimedCheckpoints, self).save(trainer, ends), device)


def checkpoint(args: Namespace, asynchronous: bool) -> str:
    """Seconds that training stands still for a checkpoint with AdamW's state, by its bytes on disk."""
    size = args.size
    step = Step(size.heads, size.head_dim, (1, 1), (1, 2, 2), 1, torch.float32, "cpu")
    width = {"text_dim": 1024, "pooled_dim": 768}
    module = InContextEditingModule(
        step.model,
        {"codec": DCTCodec(), "text_encoder": HashedTextEncoder(**width)},
        InContext(),
        "bench",
        partial(torch.optim.AdamW, lr=1e-5),
    )
    with tempfile.TemporaryDirectory() as folder:
        timed = TimedCheckpoints(every_n_steps=10, asynchronous=asynchronous)
        trainer = L.Trainer(
            accelerator="gpu" if args.device.type == "cuda" else "cpu",
            devices=1,
            max_steps=1,
            default_root_dir=folder,
            callbacks=[timed],
            plugins=[CheckpointFolders()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=Latents())
        written = sum(f.stat().st_size for f in Path(folder, "checkpoints").rglob("*") if f.is_file())
    count = sum(parameter.numel() for parameter in module.transformer.parameters())
    return f"{timed.stopped:.2f} s ({count / 1e9:.3g} · 10⁹ parameters, {written / 2**30:.3g} GiB)"


# ---- the tables ------------------------------------------------------------------------------------------------------


def step_row(name: tuple[str, ...], found: Timing | str, peer: Timing | str | None, work: int, rate: Any) -> tuple:
    """A row of the first table."""
    if not isinstance(found, Timing):
        return (*name, found, "", "", "", "")
    share = f"{work / found.whole / rate:.0%}" if isinstance(rate, float) else ""
    ratio = f"{peer.whole / found.whole:.2f}" if isinstance(peer, Timing) else ""
    peak = "" if found.peak is None else f"{found.peak / 2**30:.1f}"
    return (*name, f"{found.long:.3f}", f"{found.whole:.2f}", share, peak, ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--dtype", help="of weights and products (default: bfloat16, on a CPU float32)")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it prints what it has (default: 9)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: that it runs, not what it costs")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: give --device cpu --tiny to see that the tool runs.")
    cpu = args.device.type == "cpu"
    args.dtype = getattr(torch, args.dtype or ("float32" if cpu else "bfloat16"))
    args.size = size = TINY if args.tiny else Sizes()
    logging.set_verbosity_error()
    cells = Cells(args.minutes)

    tokens, width = 2 * size.grid[0] * size.grid[1] * size.grid[2], size.heads * size.head_dim
    rate = cells.measure("matrix product", lambda: bench_transformer.matmul_rate(args.device, args.dtype, size.matmul))
    kernel = cells.measure(
        "kernel", lambda: attention_kernel(tokens + size.text, size.heads, size.head_dim, args.device, args.dtype)
    )
    work = flops(size)
    peers = {mode: cells.measure(f"diffusers, {mode}", partial(peer_step, args, mode)) for mode in ("none", "full")}
    precision = str(args.dtype).removeprefix("torch.")
    rows = [step_row(("diffusers", precision, "eager", mode), peers[mode], None, work, rate) for mode in peers]
    found, beside = {}, []

    def steps(compiled: bool, float8: bool) -> None:
        for mode in ("none", "selective", "full"):
            name = ("icve", "float8" if float8 else precision, "compiled" if compiled else "eager", mode)
            found[name] = cells.measure(", ".join(name), partial(own_step, args, mode, compiled, float8))
            rows.append(step_row(name, found[name], peers.get(mode), work, rate))

    try:
        steps(compiled=False, float8=False)
        for what, sizes, function in (
            ("AdamW, fused", "float32", adamw),
            ("codec: source and target", "{} frames of {} x {}".format(*size.clip), encode_clips),
            ("text encoders: one text", f"{256} tokens", encode_text),
            ("a step of 2 + 4 blocks with encoding", "full checkpointing", step_with_encoding),
            ("training stopped by a checkpoint", "written at once", partial(checkpoint, asynchronous=False)),
            ("training stopped by a checkpoint", "written beside", partial(checkpoint, asynchronous=True)),
        ):
            beside.append((what, sizes, cells.measure(f"{what}, {sizes}", partial(function, args))))
        steps(compiled=True, float8=False)
        if cpu or multiplies_float8(args.device):
            steps(compiled=True, float8=True)
            steps(compiled=False, float8=True)
    finally:  # also where somebody ends it
        device = "CPU" if cpu else torch.cuda.get_device_name(args.device)
        product = f"{rate / 1e12:.4g} TFLOP/s" if isinstance(rate, float) else rate
        print(
            f"{device}, torch {torch.__version__}, {tokens} visual + {size.text} text tokens, width {width}, a matrix "
            f"product in {precision}: {product}, attention by torch's kernel '{kernel}', {work / 1e15:.3g} PFLOP a "
            f"step of {WHOLE[0]} + {WHOLE[1]} blocks.\n"
        )
        head = ("model", "products", "blocks", "checkpointing", "s, 2 + 4 blocks", "s, 20 + 40, extrapolated")
        print(table((*head, "MFU", "peak GiB, 2 + 4 blocks", "diffusers / icve"), rows))
        print("", table(("beside the step", "size", "cost"), beside), "", goals(found, peers, work, rate), sep="\n")


def goals(found: dict[tuple, Timing | str], peers: dict[str, Timing | str], work: int, rate: Any) -> str:
    """One line on what was to be reached."""
    times = {name: timing for name, timing in found.items() if isinstance(timing, Timing)}
    own = min(times, key=lambda name: times[name].whole, default=None)
    peer = min((timing.whole for timing in peers.values() if isinstance(timing, Timing)), default=None)
    if own is None or peer is None or not isinstance(rate, float):
        return "Not enough was measured to compare with the goals."
    ratio, share = peer / times[own].whole, work / times[own].whole / rate
    verdicts = ["reached" if is_so else "missed" for is_so in (ratio >= GOAL_RATIO, share >= GOAL_SHARE)]
    return (
        f"Fastest: {', '.join(own[1:])}: {ratio:.2f} times as fast as the fastest of diffusers' (goal {GOAL_RATIO}: "
        f"{verdicts[0]}), {share:.0%} of the matrix product's rate (goal {GOAL_SHARE:.0%}: {verdicts[1]})."
    )


if __name__ == "__main__":
    main()
