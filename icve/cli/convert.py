"""`icve convert`: checkpoints and adapters to the layouts that other programs read."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icve.models.families import export_formats
from icve.runtime.printable import forgive_output
from icve.runtime.storage.remote_path import refuse_url

if TYPE_CHECKING:
    import torch

EPILOG = """examples:
  icve convert weights --input weights/ckpts/transformers --output t2v --format diffusers
  icve convert weights --input runs/sft --output icve --format icve --dtype bfloat16
  icve convert vae --input weights/ckpts/vae --output vae
  icve convert merge --model weights/icve --lora runs/lora/checkpoints/last --output merged
  icve convert lora --input runs/lora/checkpoints/last --output my_edit_comfyui.safetensors
  icve convert editor --input runs/editor/sft --output runs/editor/model

Inputs are recognised: folders of diffusers and of the models' own layouts, .safetensors and .pt files, runs and their
checkpoints (the averaged weights), adapters of any known layout (docs/checkpoints.md), behind URLs too. What is written
appears whole or not at all.

exit status: 0 done; 2 wrong arguments, or an input that cannot be used
"""
DTYPES = ("bfloat16", "float16", "float32")
USAGE = 2


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve convert`."""
    parser = argparse.ArgumentParser(
        prog="icve convert",
        description="Bring checkpoints and adapters into the layouts that other programs read.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, what: str, run: Callable[[argparse.Namespace], str], files: bool = False) -> Callable:
        part = kinds.add_parser(name, help=what, description=f"Write {what}.")
        part.set_defaults(run=run)
        part.add_argument("--output", type=Path, required=True, help="file to write" if files else "folder to write")
        return part.add_argument

    add = kind("weights", "a transformer in diffusers' or ICVE's layout", _weights)
    add("--input", type=Path, required=True, help="folder or file with the weights")
    add("--format", default="diffusers", choices=export_formats(), help="layout to write")
    add("--dtype", choices=DTYPES, help="what the weights become (default: what is stored)")
    add("--max-shard-size", metavar="SIZE", help="of a file, as 5GB (default: 10GB, ICVE one file)")
    add("--ema", action="store_true", help="averaged weights of a .pt file that holds both")
    add = kind("vae", "a published video autoencoder in diffusers' layout", _vae)
    add("--input", type=Path, required=True, help="its folder or weights file, or a folder with vae/ in it")
    add("--dtype", choices=DTYPES, help="what the weights become (default: what is stored)")
    add("--max-shard-size", metavar="SIZE", help="of a file, as 5GB (default: 10GB)")
    add = kind("merge", "an adapter added to the weights it was trained on, as one transformer", _merge)
    add("--model", type=Path, required=True, help="transformer in any known layout")
    add("--lora", type=Path, required=True, help="adapter file or folder")
    add("--format", default="diffusers", choices=export_formats(), help="layout to write")
    add("--scale", type=float, default=1.0, help="of the adapter's change (1)")
    add = kind("lora", "an adapter in ComfyUI's layout: three times the rank, as q, k and v are one there", _lora, True)
    add("--input", type=Path, required=True, help="adapter file or folder")
    add = kind("editor", "a small editor of a run's averaged weights, with nothing else", _editor)
    add("--input", type=Path, required=True, help="run, checkpoint or model folder")
    add("--dtype", default="bfloat16", choices=DTYPES, help="of the transformer (bfloat16)")
    for name, type_ in (("steps", int), ("guidance-scale", float), ("guidance-until", float), ("shift", float)):
        add(f"--{name}", type=type_, help="sampling setting of the editor (default: the run's)")
    add("--solver", choices=("euler", "unipc"), help="of the editor's steps (default: the run's)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve convert`, print what was written, and return the exit status."""
    forgive_output()
    words = sys.argv[1:] if argv is None else argv
    # An option's name may be written with underscores, as in the configurations of training.
    words = [re.sub("^--[^=]+", lambda option: option[0].replace("_", "-"), word) for word in words]
    arguments = build_parser().parse_args(words)
    try:
        refuse_url("--output", arguments.output)
        print(arguments.run(arguments))
    except (OSError, ValueError) as error:
        print(f"icve convert: {error}", file=sys.stderr)
        return USAGE
    return 0


# Each raises FileNotFoundError, FileExistsError or ValueError in one sentence.


def _weights(arguments: argparse.Namespace) -> str:
    from icve.models.loading import byte_count, export_transformer, load_transformer, recorded_bases

    _refuse_full(arguments.output)
    if arguments.max_shard_size is not None:
        byte_count(arguments.max_shard_size)  # refused before minutes of reading
    model = load_transformer(arguments.input, dtype=_dtype(arguments.dtype), ema=arguments.ema, progress=True)
    bases = recorded_bases(arguments.input)
    export_transformer(model, arguments.output, arguments.format, arguments.max_shard_size, bases)
    return _written(arguments.output, model)


def _vae(arguments: argparse.Namespace) -> str:
    from icve.models.families import FAMILIES
    from icve.models.family import located
    from icve.models.loading import byte_count
    from icve.models.remote_runs import on_disk

    _refuse_full(arguments.output)
    limit = None if arguments.max_shard_size is None else byte_count(arguments.max_shard_size)
    *others, last = [family.convert_codec for family in FAMILIES if family.convert_codec is not None]
    options = on_disk(arguments.input), arguments.output, _dtype(arguments.dtype), limit
    for convert in others:
        with contextlib.suppress(ValueError):  # another family's
            return _written(arguments.output, located(convert)(*options))
    return _written(arguments.output, located(last)(*options))


def _merge(arguments: argparse.Namespace) -> str:
    from icve.models.adapters.files import read_adapter
    from icve.models.loading import export_transformer, load_transformer, recorded_bases
    from icve.models.lora import fuse_layers

    _refuse_full(arguments.output)
    adapter = read_adapter(arguments.lora)  # a bad one is refused before the model is read
    transformer = load_transformer(arguments.model)
    fuse_layers(transformer, adapter, arguments.lora, arguments.scale)
    export_transformer(transformer, arguments.output, arguments.format, bases=recorded_bases(arguments.model))
    return _written(arguments.output, transformer)


def _lora(arguments: argparse.Namespace) -> str:
    from safetensors.torch import save_file

    from icve.models.lora import to_comfyui
    from icve.runtime.atomic import whole_file

    converted = to_comfyui(arguments.input)
    with whole_file(arguments.output) as temporary:
        save_file(converted, temporary, metadata={"format": "pt"})
    return f"{arguments.output}: {len(converted) // 2} layers"


def _editor(arguments: argparse.Namespace) -> str:
    import torch

    from icve.editing.editors import load_editor
    from icve.models.licences import card
    from icve.runtime.atomic import new_folder

    _refuse_full(arguments.output)
    editor = load_editor(arguments.input, "cpu")
    # diffusers' own method warns of modules to be kept in float32, though there are none
    torch.nn.Module.to(editor.transformer, getattr(torch, arguments.dtype))
    names = ("steps", "guidance_scale", "guidance_until", "shift", "solver")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    editor.register_to_config(defaults={**editor.config.defaults, **given})
    with new_folder(arguments.output) as folder:
        editor.save_pretrained(folder)
        for file in folder.rglob("*.json"):  # where it was made is nobody's business
            values = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(values, dict):
                values.pop("_name_or_path", None)
            file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(arguments.output.name, editor.bases), encoding="utf-8")
    return _written(arguments.output, editor.transformer)


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    return None if name is None else getattr(torch, name)


def _refuse_full(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):  # known before minutes of reading
        raise FileExistsError(f"'{output}' is not empty: choose another --output.")


def _written(output: Path, model: torch.nn.Module) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    files = sorted(output.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return f"{output}: {count / 1e6:.1f} M parameters, {size / 1e9:.3f} GB in {len(files)} file(s)"


if __name__ == "__main__":
    sys.exit(main())
