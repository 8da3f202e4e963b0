"""Write an adapter in ComfyUI's key layout.

    python tools/convert_lora.py --input runs/lora/checkpoints/last --output my_edit_comfyui.safetensors

`--input` is a file or folder of any known layout (docs/checkpoints.md). Query, key and value are one matrix there, so
adapters that were trained for each become one of three times the rank: the same change of the weights, exactly.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from icve.models.lora import to_comfyui
from icve.runtime.atomic import whole_file


def convert(source: Path, output: Path) -> int:
    """Convert a file or folder; returns the number of layers. Raises ValueError or OSError in one sentence."""
    converted = to_comfyui(source)
    with whole_file(output) as temporary:
        save_file(converted, temporary, metadata={"format": "pt"})
    return len(converted) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        print(f"{args.output}: {convert(args.input, args.output)} layers")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
