"""Make a small model folder of a trained run: its last checkpoint's averaged weights in bfloat16, nothing else.

    python tools/export_editor.py --run runs/editor/sft --output runs/editor/model

The folder loads with `icve-edit --model` and `EditPipeline.from_pretrained`.
"""

import argparse
from pathlib import Path

import torch

from icve.editing.models import load_editor


def export(run: Path, output: Path, dtype: torch.dtype) -> int:
    """Write the model folder; returns the bytes of its weights. Raises FileExistsError when it holds something."""
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: choose another --output.")
    editor = load_editor(run, "cpu")
    editor.transformer.to(dtype)
    editor.save_pretrained(output)
    return sum(file.stat().st_size for file in output.rglob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run, checkpoint or model folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    args = parser.parse_args()
    size = export(args.run, args.output, getattr(torch, args.dtype))
    print(f"{args.output}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
