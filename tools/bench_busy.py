"""A training step of the demo's model on a CPU, alone and beside busy processes, by how OpenMP's threads wait.

`icve.runtime.threads` sets the second way; the first is the library's default, the third sleeps at once. Every figure
is of a process of its own, since the library reads its settings when it is loaded.

    python tools/bench_busy.py                   # float32 and bfloat16 with one frame and with nine
    python tools/bench_busy.py --dtypes float32 --busy 2 --steps 10
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

WAYS = {"spin (default)": {}, "spin, then sleep": {"GOMP_SPINCOUNT": None}, "sleep": {"OMP_WAIT_POLICY": "passive"}}
BUSY = "while True: pass"
CONFIG = Path(__file__).parents[1] / "configs" / "demo" / "sft.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="busy processes (one for every processor)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a figure, of which the median is taken (8)")
    parser.add_argument("--batch", type=int, default=32, help="samples of a step (32)")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 9], help="frames of a clip, 4k+1 (1 9)")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(step_seconds(json.loads(arguments.measure), arguments.steps, arguments.batch)))
        return
    import torch

    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| dtype | frames | waiting | alone, s | beside {arguments.busy}, s | ratio | to the default alone |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for dtype in arguments.dtypes:
        for frames in arguments.frames:
            table(dtype, frames, arguments)


def table(dtype: str, frames: int, arguments: argparse.Namespace) -> None:
    """Rows of one dtype and length of clips."""
    first = None
    for way, settings in WAYS.items():
        alone = measured(dtype, frames, settings, arguments)
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(arguments.busy)]
        try:
            beside = measured(dtype, frames, settings, arguments)
        finally:
            for other in others:
                other.kill()
                other.wait()
        first = first or alone
        cells = (dtype, frames, way, f"{alone:.3f}", f"{beside:.3f}", f"{beside / alone:.2f}", f"{beside / first:.2f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measured(dtype: str, frames: int, settings: dict, arguments: argparse.Namespace) -> float:
    """Seconds of a step in a process of its own."""
    from icve.runtime.threads import SPINS

    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {name: value or SPINS for name, value in settings.items()}
    own = json.dumps({"dtype": dtype, "frames": frames})
    options = ["--measure", own, "--steps", str(arguments.steps), "--batch", str(arguments.batch)]
    command = [sys.executable, __file__, *options]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)


def step_seconds(size: dict, steps: int, batch: int) -> float:
    """Median seconds of an optimizer step of the demo's fine-tuning, forward, backward and update."""
    import torch
    import yaml

    from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
    from icve.training.optimization.optimizers import MuonAdamW

    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]
    model = HunyuanVideoInContextTransformer3DModel(**config["transformer"]["init_args"])
    optimizer = MuonAdamW(model.named_parameters(), **config["optimizer"]["init_args"])
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    latents = (batch, 16, (size["frames"] - 1) // 4 + 1, 8, 8)
    inputs = {"hidden_states": draw(*latents), "source_hidden_states": draw(*latents), "timestep": draw(batch)}
    inputs |= {"encoder_hidden_states": draw(batch, 8, 128), "pooled_projections": draw(batch, 128)}
    times = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=size["dtype"] == "bfloat16"):
            loss = (model(**inputs).float() - inputs["hidden_states"]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return median(times[2:])


if __name__ == "__main__":
    main()
