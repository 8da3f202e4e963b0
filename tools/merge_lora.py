"""Add an adapter to the weights it was trained on and write the result as one transformer.

    python tools/merge_lora.py --model weights/icve --lora runs/lora/checkpoints/last --output merged

The adapter is a file or folder of any known layout (docs/checkpoints.md). The result loads like any transformer of its
format and needs peft no more.
"""

import argparse
from pathlib import Path

from icve.models.adapters.files import read_adapter
from icve.models.loading import export_transformer, load_transformer
from icve.models.lora import fuse_layers


def merge(model: Path, lora: Path, output: Path, layout: str = "diffusers", scale: float = 1.0) -> None:
    """Merge and export. Raises ValueError or OSError in one sentence."""
    adapter = read_adapter(lora)  # a bad one is refused before the model is read
    transformer = load_transformer(model)
    fuse_layers(transformer, adapter, lora, scale)
    export_transformer(transformer, output, layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="transformer in any known layout")
    parser.add_argument("--lora", type=Path, required=True, help="adapter file or folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", choices=("diffusers", "icve"), default="diffusers")
    parser.add_argument("--scale", type=float, default=1.0, help="of the adapter's change (1)")
    args = parser.parse_args()
    try:
        merge(args.model, args.lora, args.output, args.format, args.scale)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(args.output)


if __name__ == "__main__":
    main()
