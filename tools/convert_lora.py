"""Write an adapter in ComfyUI's key layout.

    python tools/convert_lora.py --input runs/lora/checkpoints/last --output my_edit_comfyui.safetensors

`--input` is a file or folder in diffusers' layout (`pytorch_lora_weights.safetensors`). Query, key and value are one
matrix there, so their adapters become one of three times the rank: the same change of the weights, exactly.
"""

import argparse
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from icve.model.lora import LORA_FILE, to_comfyui


def convert(source: Path, output: Path) -> int:
    """Convert a file or folder; returns the number of layers. Raises ValueError or FileNotFoundError."""
    file = source / LORA_FILE if source.is_dir() else source
    if not file.is_file():
        raise FileNotFoundError(f"There is no adapter at {file}.")
    with safe_open(file, framework="pt") as tensors:
        metadata = tensors.metadata() or {}
        state = {key: tensors.get_tensor(key).clone() for key in tensors.keys()}  # noqa: SIM118
    settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    converted = to_comfyui(state, settings.get("transformer.lora_alpha"))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    save_file(converted, temporary, metadata={"format": "pt"})
    temporary.replace(output)
    return len(converted) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        print(f"{args.output}: {convert(args.input, args.output)} layers")
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
