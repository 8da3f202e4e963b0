"""Time the in-context transformer of a family against diffusers' model of it, both in the same run.

Both see the same number of visual tokens: the in-context model as source and target, the peer as one video of twice
the frames. Rounds alternate between the two, so that a busy machine slows both; the median of their ratios is what
counts. Times are a CPU's seconds, of all threads together, or a GPU's wall clock.

    python tools/bench_transformer.py                       # 2560 visual tokens, 4+8 blocks of width 768, on the CPU
    python tools/bench_transformer.py --family wan --dtype float32    # two blocks of Wan 2.1's 1.3B, 17 frames of 240p
    python tools/bench_transformer.py --device cuda --heads 24 --head-dim 128 --layers 2 4 --grid 20 30 48 \\
        --dtype bfloat16                                    # tokens of the 480p bucket; prints TFLOP/s
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.wan.transformer import WanInContextTransformer3DModel


def saved_bytes(run) -> int:
    """Bytes of distinct storages that autograd keeps for backward during `run`, parameters excluded."""
    storages, parameters = {}, {p.untyped_storage().data_ptr() for p in run.parameters}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    total = sum(size for size, _ in storages.values())
    del loss
    return total


class Run:
    """One forward pass of one model on fixed random inputs."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs
        self.parameters = list(model.parameters())

    def __call__(self):
        out = self.model(**self.inputs)
        return (out if torch.is_tensor(out) else out.sample).square().mean()

    def backward(self):
        self().backward()
        for parameter in self.parameters:
            parameter.grad = None

    def forward(self):
        with torch.no_grad():
            self()


def seconds(function, device, clock=time.perf_counter) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def build(args, dtype, valid: int) -> dict[str, Run]:
    """Of HunyuanVideo."""
    head = args.head_dim
    rope = (head // 8, head * 7 // 16, head * 7 // 16)
    config = {
        "num_attention_heads": args.heads,
        "attention_head_dim": head,
        "num_layers": args.layers[0],
        "num_single_layers": args.layers[1],
        "text_embed_dim": 1024,
        "pooled_projection_dim": 768,
        "rope_axes_dim": rope,
        "guidance_embeds": False,
    }
    if config["rope_axes_dim"][0] % 2 or sum(rope) != head:
        config["rope_axes_dim"] = (head - 2 * (head // 4 * 3 // 2), head // 4 * 3 // 2, head // 4 * 3 // 2)
    classes = HunyuanVideoInContextTransformer3DModel, HunyuanVideoTransformer3DModel
    runs = pair(args, dtype, classes, config, 1024, valid)
    pooled = torch.randn(args.batch, 768, device=args.device, dtype=dtype)
    for run in runs.values():
        run.inputs["pooled_projections"] = pooled
    runs["diffusers"].inputs |= {"guidance": None, "encoder_attention_mask": text_mask(args, valid).to(args.device)}
    return runs


def build_wan(args, dtype, valid: int) -> dict[str, Run]:
    """The peer attends, without a mask, to all rows of text, of which those beyond it are zero: as Wan was trained."""
    config = {
        "num_attention_heads": args.heads,
        "attention_head_dim": args.head_dim,
        "num_layers": args.layers[0],
        "ffn_dim": args.heads * args.head_dim * 35 // 6,  # the 1.3B's share
    }
    classes = WanInContextTransformer3DModel, WanTransformer3DModel
    runs = pair(args, dtype, classes, config, 4096, valid, text_len=args.text)
    runs["diffusers"].inputs["encoder_hidden_states"] = (
        runs["icve"].inputs["encoder_hidden_states"].masked_fill(~text_mask(args, valid)[..., None].to(args.device), 0)
    )
    return runs


def text_mask(args, valid: int) -> torch.Tensor:
    return (torch.arange(args.text) < valid).expand(args.batch, -1)


def pair(args, dtype, classes, config, text_width: int, valid: int, **ours_alone) -> dict[str, Run]:
    """Our class and diffusers' with the same weights, and what both take."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    with device:
        peer = classes[1](**config).to(dtype)
        ours = classes[0](**config, **ours_alone).to(dtype)
    ours.load_state_dict(peer.state_dict())
    frames, height, width = args.grid
    video = torch.randn(args.batch, 16, 2 * frames, 2 * height, 2 * width, device=device, dtype=dtype)
    source, target = video.chunk(2, dim=2)
    shared = {
        "timestep": torch.full((args.batch,), 500.0, device=device),
        "encoder_hidden_states": torch.randn(args.batch, args.text, text_width, device=device, dtype=dtype),
    }
    ours_inputs = {"source_hidden_states": source, "encoder_attention_mask": text_mask(args, valid)}
    return {
        "icve": Run(ours, shared | {"hidden_states": target} | ours_inputs),
        "diffusers": Run(peer, shared | {"hidden_states": video}),
    }


@dataclass(frozen=True)
class Family:
    """How its models are built, and the sizes that are measured unless others are given."""

    build: Callable[..., dict[str, Run]]
    heads: int
    head_dim: int
    layers: list[int]
    grid: list[int]
    text: int
    valid: list[int]


FAMILIES = {
    "hunyuan_video": Family(build, 12, 64, [4, 8], [5, 16, 16], 256, [40, 256]),
    "wan": Family(build_wan, 12, 128, [2], [5, 15, 26], 512, [40, 512]),
}


def matmul_rate(device, dtype, n=8192, repeats=10) -> float:
    """FLOP/s of a large matrix product on this device."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="hunyuan_video")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--heads", type=int)
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--layers", type=int, nargs="+", help="blocks; HunyuanVideo: double- and single-stream ones")
    parser.add_argument("--grid", type=int, nargs=3, help="target tokens along t, h, w")
    parser.add_argument("--text", type=int, help="tokens; Wan attends to so many, its padding included")
    parser.add_argument("--valid", type=int, nargs="+", help="valid text tokens, one table each")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    family = FAMILIES[args.family]
    for name in ("heads", "head_dim", "layers", "grid", "text", "valid"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(family, name))
    if len(args.layers) != len(family.layers):
        parser.error(f"--layers takes {len(family.layers)} of {args.family}, as {family.layers}.")
    device = torch.device(args.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    tokens = 2 * args.grid[0] * args.grid[1] * args.grid[2]
    print(
        f"{args.family}: {tokens} visual + {args.text} text tokens, width {args.heads * args.head_dim}, {args.layers} "
        f"blocks, batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}, "
        f"{torch.backends.cpu.get_cpu_capability()}\n"
    )
    print("| dtype | valid text | pass | icve s | diffusers s | ratio | saved bytes ratio | TFLOP/s | of matmul |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.dtype:
        dtype = getattr(torch, name)
        rate = matmul_rate(device, dtype) if device.type == "cuda" else None
        for valid in args.valid:
            runs = family.build(args, dtype, valid)
            memory = saved_bytes(runs["icve"]) / saved_bytes(runs["diffusers"])
            for kind in "forward", "backward":
                with FlopCounterMode(display=False) as counter:
                    getattr(runs["icve"], kind)()
                getattr(runs["diffusers"], kind)()
                times = {"icve": [], "diffusers": []}
                for _ in range(args.rounds):
                    for who, run in runs.items():
                        times[who].append(seconds(getattr(run, kind), device, clock))
                ours, peer = (statistics.median(times[who]) for who in ("icve", "diffusers"))
                ratio = statistics.median(a / b for a, b in zip(times["icve"], times["diffusers"], strict=True))
                achieved = counter.get_total_flops() / ours
                label, share = ("forward", "") if kind == "forward" else ("forward+backward", f"{memory:.2f}")
                of_matmul = f"{achieved / rate:.0%}" if rate else ""
                print(
                    f"| {name} | {valid} of {args.text} | {label} | {ours:.3f} | {peer:.3f} | {ratio:.2f} "
                    f"| {share} | {achieved / 1e12:.2f} | {of_matmul} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
