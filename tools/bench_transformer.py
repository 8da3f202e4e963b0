"""Time the in-context transformer against diffusers' HunyuanVideo model, both in the same run.

Both see the same number of visual tokens: the in-context model as source and target, the peer as one video of twice
the frames. Rounds alternate between the two, so that a busy machine slows both; the ratio of medians is what counts.

    python tools/bench_transformer.py                       # 2560 visual tokens, 4+8 blocks of width 768, on the CPU
    python tools/bench_transformer.py --device cuda --heads 24 --head-dim 128 --layers 2 4 --grid 20 30 48 \\
        --dtype bfloat16                                    # tokens of the 480p bucket; prints TFLOP/s
"""

import argparse
import statistics
import time

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel


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


def seconds(function, device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def build(args, dtype, valid: int) -> dict[str, Run]:
    device = torch.device(args.device)
    torch.manual_seed(0)
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
    with device:
        peer = HunyuanVideoTransformer3DModel(**config).to(dtype)
        ours = HunyuanVideoInContextTransformer3DModel(**config).to(dtype)
    ours.load_state_dict(peer.state_dict())
    frames, height, width = args.grid
    video = torch.randn(args.batch, 16, 2 * frames, 2 * height, 2 * width, device=device, dtype=dtype)
    source, target = video.chunk(2, dim=2)
    mask = (torch.arange(args.text) < valid).expand(args.batch, -1)
    shared = {
        "timestep": torch.full((args.batch,), 500.0, device=device),
        "encoder_hidden_states": torch.randn(args.batch, args.text, 1024, device=device, dtype=dtype),
        "pooled_projections": torch.randn(args.batch, 768, device=device, dtype=dtype),
    }
    ours_inputs = {"hidden_states": target, "source_hidden_states": source, "encoder_attention_mask": mask}
    peer_inputs = {"hidden_states": video, "encoder_attention_mask": mask.to(device), "guidance": None}
    return {"icve": Run(ours, shared | ours_inputs), "diffusers": Run(peer, shared | peer_inputs)}


def matmul_rate(device, dtype, n=8192, repeats=10) -> float:
    """FLOP/s of a large matrix product on this device."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, nargs=2, default=[4, 8], help="double- and single-stream blocks")
    parser.add_argument("--grid", type=int, nargs=3, default=[5, 16, 16], help="target tokens along t, h, w")
    parser.add_argument("--text", type=int, default=256)
    parser.add_argument("--valid", type=int, nargs="+", default=[40, 256], help="valid text tokens, one table each")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    tokens = 2 * args.grid[0] * args.grid[1] * args.grid[2]
    print(
        f"{tokens} visual + {args.text} text tokens, width {args.heads * args.head_dim}, {args.layers} blocks, ", end=""
    )
    print(f"batch {args.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}\n")
    print("| dtype | valid text | pass | icve s | diffusers s | ratio | saved bytes ratio | TFLOP/s | of matmul |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.dtype:
        dtype = getattr(torch, name)
        rate = matmul_rate(device, dtype) if device.type == "cuda" else None
        for valid in args.valid:
            runs = build(args, dtype, valid)
            memory = saved_bytes(runs["icve"]) / saved_bytes(runs["diffusers"])
            for kind in "forward", "backward":
                with FlopCounterMode(display=False) as counter:
                    getattr(runs["icve"], kind)()
                times = {"icve": [], "diffusers": []}
                for run in runs.values():
                    getattr(run, kind)()
                for _ in range(args.rounds):
                    for who, run in runs.items():
                        times[who].append(seconds(getattr(run, kind), device))
                ours, peer = (statistics.median(times[who]) for who in ("icve", "diffusers"))
                achieved = counter.get_total_flops() / ours
                label, share = ("forward", "") if kind == "forward" else ("forward+backward", f"{memory:.2f}")
                of_matmul = f"{achieved / rate:.0%}" if rate else ""
                print(
                    f"| {name} | {valid} of {args.text} | {label} | {ours:.3f} | {peer:.3f} | {ours / peer:.2f} "
                    f"| {share} | {achieved / 1e12:.2f} | {of_matmul} |"
                )


if __name__ == "__main__":
    main()
