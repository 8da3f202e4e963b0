"""Make a small model folder of a trained run: its last checkpoint's averaged weights in bfloat16, nothing else.

    python tools/export_editor.py --run runs/editor/sft --output runs/editor/model

The folder loads with `icve-edit --model` and `EditPipeline.from_pretrained`.
"""

import argparse
import json
from pathlib import Path

import torch

from icve.editing.editors import load_editor


def export(run: Path, output: Path, dtype: torch.dtype, **defaults: float | None) -> int:
    """Write the model folder; returns the bytes of its weights. Raises FileExistsError when it holds something.

    ``defaults`` replace the run's sampling settings (steps, guidance_scale, guidance_until, shift) where not None.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: choose another --output.")
    editor = load_editor(run, "cpu")
    editor.transformer.to(dtype)
    given = {name: value for name, value in defaults.items() if value is not None}
    editor.register_to_config(defaults={**editor.config.defaults, **given})
    editor.save_pretrained(output)
    for file in output.rglob("*.json"):  # where it was made is nobody's business
        values = json.loads(file.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in output.rglob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run, checkpoint or model folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    for name, kind in (("steps", int), ("guidance", float), ("guidance_until", float), ("shift", float)):
        parser.add_argument(f"--{name}", type=kind, help="sampling setting of the model folder (default: the run's)")
    args = parser.parse_args()
    size = export(
        args.run,
        args.output,
        getattr(torch, args.dtype),
        steps=args.steps,
        guidance_scale=args.guidance,
        guidance_until=args.guidance_until,
        shift=args.shift,
    )
    print(f"{args.output}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
