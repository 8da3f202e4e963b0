"""Convert transformer weights between diffusers' and ICVE's layout, and Tencent's autoencoder to diffusers'.

    python tools/convert_checkpoint.py --input ckpts/hunyuan-video-t2v-720p/transformers --output t2v --format diffusers
    python tools/convert_checkpoint.py --input runs/sft --output icve --format icve --dtype bfloat16
    python tools/convert_checkpoint.py --vae --input ckpts/hunyuan-video-t2v-720p/vae --output vae

The input may be a diffusers, ICVE or Tencent folder, a .safetensors or .pt file, a training run or checkpoint (its
averaged weights), or a pipeline; it is recognised. The output folder appears whole or not at all. What an ICVE folder
holds are the names, shapes and values of the release; tensors change by --dtype only.
"""

import argparse
from pathlib import Path

import torch

from icve.models.hunyuan_video.codec_checkpoint import export_vae, load_vae
from icve.models.loading import byte_count, export_transformer, load_transformer

DTYPES = ("bfloat16", "float16", "float32")


def convert(
    source: Path,
    output: Path,
    format: str = "diffusers",
    dtype: torch.dtype | None = None,
    max_shard_size: str | None = None,
    vae: bool = False,
    ema: bool = False,
    progress: bool = False,
) -> int:
    """Write the folder `output`; returns the number of parameters.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as loading and exporting do, in one sentence.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):  # known before minutes of reading
        raise FileExistsError(f"'{output}' is not empty: choose another --output.")
    if vae:
        if format != "diffusers":
            raise ValueError("The autoencoder has diffusers' layout only: leave out --format icve.")
        limit = None if max_shard_size is None else byte_count(max_shard_size)
        model = load_vae(source, dtype=dtype)
        export_vae(model, output, limit)
    else:
        if max_shard_size is not None:
            byte_count(max_shard_size)
        model = load_transformer(source, dtype=dtype, ema=ema, progress=progress)
        export_transformer(model, output, format, max_shard_size)
    return sum(parameter.numel() for parameter in model.parameters())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder or file with the weights")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--format", default="diffusers", choices=("diffusers", "icve"), help="layout to write")
    parser.add_argument("--dtype", choices=DTYPES, help="what the weights become (default: what is stored)")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of a file, as 5GB (default: 10GB, ICVE one file)")
    parser.add_argument("--vae", action="store_true", help="the input is the video autoencoder")
    parser.add_argument("--ema", action="store_true", help="averaged weights of a .pt file that holds both")
    args = parser.parse_args(argv)
    dtype = args.dtype and getattr(torch, args.dtype)
    try:
        count = convert(
            args.input, args.output, args.format, dtype, args.max_shard_size, args.vae, args.ema, progress=True
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    files = sorted(args.output.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"{args.output}: {count / 1e6:.1f} M parameters, {size / 1e9:.3f} GB in {len(files)} file(s)")


if __name__ == "__main__":
    main()
