"""`icve-edit`: edit a video by an instruction. Sizing, windows and files; the editing itself is `EditPipeline`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch and diffusers load only once the arguments are known to be good
    from icve.pipeline import EditPipeline

EPILOG = """examples:
  icve-edit --model runs/demo/sft --input clip.mp4 --instruction "make the red circle blue" --output out/
  icve-edit --model runs/demo/sft/checkpoints/step-000700 --input clip.mp4 --instruction "remove the dog" \\
      --output out/ --steps 20 --guidance 3 --seed 7

exit status: 0 done; 2 wrong arguments; 3 the video could not be decoded or the result not written
"""


class EditFailed(RuntimeError):
    """An item that could not be edited, with the reason in one sentence."""


def resolve_model_folder(path: str | os.PathLike) -> Path:
    """The folder that holds `model_index.json`: `path` itself (model or checkpoint folder) or a run's last checkpoint.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"The model folder {path} does not exist.")
    for folder in (path, path / "checkpoints" / "last"):
        if (folder / "model_index.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path} holds no model: give a run folder (with checkpoints/last), a checkpoint folder or a model folder "
        "(with model_index.json)."
    )


def load_editor(path: str | os.PathLike, device: str | None = None) -> EditPipeline:
    """Load the editor of a run, checkpoint or model folder on a device (None: CUDA where there is one, else CPU).

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if its model cannot be loaded, or the device does not exist.
    """
    folder = resolve_model_folder(path)
    import torch
    from safetensors import SafetensorError

    from icve.pipeline import EditPipeline

    try:
        pipeline = EditPipeline.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"The model in {folder} cannot be loaded: {_first_sentence(error)}") from error
    pipeline.transformer.eval()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The model cannot be moved to the device {device!r}: {_first_sentence(error)}") from error


def model_size(height: int, width: int, budget: int, multiple: int = 16) -> tuple[int, int]:
    """The size (height, width) at which a picture is edited: sides multiples of 16, near `budget` pixels.

    The whole picture is resized to it, so its aspect must be close: 3 % is free, beyond that aspect outweighs area.
    """
    best, best_cost = (multiple, multiple), math.inf
    for rows in range(
        multiple, multiple * (2 + math.ceil(2 * math.sqrt(budget * height / width) / multiple)), multiple
    ):
        exact = rows * width / height / multiple
        for columns in {max(1, math.floor(exact)) * multiple, max(1, math.ceil(exact)) * multiple}:
            distortion = abs(math.log(columns * height / (rows * width)))
            cost = abs(math.log(rows * columns / budget)) + 20 * max(0.0, distortion - 0.03)
            if cost < best_cost:
                best, best_cost = (rows, columns), cost
    return best


def windows(frames: int, length: int) -> list[tuple[int, int]]:
    """(start, count) of consecutive windows that cover all frames; the last one reaches back to be as long."""
    if frames <= length:
        return [(0, frames)]
    return [(min(start, frames - length), length) for start in range(0, frames, length)]


def edit_clip(pipeline: EditPipeline, frames: np.ndarray, instruction: str, seed: int, **settings) -> np.ndarray:
    """Edit a clip of any length at the model's frame count.

    Longer clips are edited window by window, each from the same noise; shorter ones are continued to 4k+1 frames by
    repeating the last frame and cut again.

    Args:
        pipeline: the editor; its default `num_frames` is the window length.
        frames: (F, h, w, 3) uint8 RGB, h and w multiples of 16.
        instruction: what to change.
        seed: of the initial noise.
        **settings: further arguments of `EditPipeline.__call__` (num_inference_steps, guidance_scale, ...).

    Returns:
        (F, h, w, 3) uint8 RGB.
    """
    import torch

    length = pipeline.default("num_frames")
    edited = np.empty_like(frames)
    for start, count in windows(len(frames), length):
        window = frames[start : start + count]
        padding = -(count - 1) % 4
        window = np.concatenate([window, np.repeat(window[-1:], padding, axis=0)])
        video = torch.from_numpy(np.ascontiguousarray(window.transpose(3, 0, 1, 2)))[None]
        generator = torch.Generator().manual_seed(seed)
        result = pipeline(video, instruction, generator=generator, output_type="uint8", **settings)
        edited[start : start + count] = result[0, :, :count].permute(1, 2, 3, 0).cpu().numpy()
    return edited


def edit_file(
    pipeline: EditPipeline, source: Path, instruction: str, output: Path, seed: int = 0, **settings
) -> dict[str, object]:
    """Edit a video file; the result has the source's displayed size, frame count and frame rate.

    Args:
        pipeline, instruction, seed, settings: as in `edit_clip`.
        source: any video the project's decoder reads.
        output: MP4 file, written whole or not at all.

    Returns:
        what was done, ready for JSON: input, output, instruction, sizes, frames, fps, windows, seed, settings, seconds.

    Raises:
        EditFailed: if the source cannot be decoded or the output not written.
    """
    from icve.data.video import VideoError, probe, read_frames, resize_crop, write_video

    began = time.perf_counter()
    budget = pipeline.default("height") * pipeline.default("width")
    try:
        info = probe(source)
        size = model_size(info.height, info.width, budget)
        frames = read_frames(source, size=size, shape=size)
    except VideoError as error:
        raise EditFailed(f"{source} cannot be decoded: {error.reason}") from error
    edited = edit_clip(pipeline, frames, instruction, seed, **settings)
    display = (info.height, info.width)
    try:
        write_video(output, resize_crop(edited, display, shape=display), info.fps)
    except OSError as error:
        raise EditFailed(f"{output} cannot be written: {_first_sentence(error)}") from error
    return {
        "input": str(source),
        "output": str(output),
        "instruction": instruction,
        "frames": len(frames),
        "fps": info.fps,
        "size": [info.height, info.width],
        "edited_size": list(size),
        "windows": len(windows(len(frames), pipeline.default("num_frames"))),
        "seed": seed,
        "settings": {name: value for name, value in settings.items() if value is not None},
        "seconds": round(time.perf_counter() - began, 3),
    }


def _first_sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".") + "."


def _prepare_output(folder: Path, source: Path) -> Path:
    """The output file, once it is certain that its folder can be written to, before minutes are spent on editing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"The output folder {folder} cannot be written to: {error.strerror or error}.") from error
    output = folder / f"{source.stem}.mp4"
    if output.exists() and output.samefile(source):
        raise ValueError(f"The output {output} would replace the input: choose another --output folder.")
    return output


def build_parser() -> argparse.ArgumentParser:
    """Arguments of `icve-edit`."""
    parser = argparse.ArgumentParser(
        prog="icve-edit",
        description="Edit a video by an instruction with a trained in-context editor.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="run folder, checkpoint folder or model folder")
    parser.add_argument("--input", required=True, help="video file")
    parser.add_argument("--instruction", required=True, help='what to change, e.g. "make the red circle blue"')
    parser.add_argument("--output", required=True, help="folder; the result is <name of the input>.mp4 in it")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument(
        "--guidance", type=float, help="classifier-free guidance, 1 switches it off (default: the model's)"
    )
    parser.add_argument("--shift", type=float, help="shift of the noise schedule (default: the model's)")
    parser.add_argument("--negative-prompt", help="what the result should not be (default: the model's)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial noise (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one, else cpu)")
    return parser


def _check_arguments(arguments: argparse.Namespace) -> None:
    if not arguments.instruction.strip():
        raise ValueError("The instruction is empty: say what to change.")
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {arguments.steps}.")
    if arguments.shift is not None and arguments.shift <= 0:
        raise ValueError(f"--shift must be positive, got {arguments.shift}.")
    if not Path(arguments.input).is_file():
        raise FileNotFoundError(f"The input {arguments.input} is not a file.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `icve-edit`; prints one line of JSON per edited video and returns the exit status (0, 2 or 3)."""
    arguments = build_parser().parse_args(argv)
    source = Path(arguments.input)
    try:
        _check_arguments(arguments)
        resolve_model_folder(arguments.model)
        output = _prepare_output(Path(arguments.output), source)
        pipeline = load_editor(arguments.model, arguments.device)
    except (ValueError, FileNotFoundError) as error:
        print(f"icve-edit: {error}", file=sys.stderr)
        return 2
    try:
        result = edit_file(
            pipeline,
            source,
            arguments.instruction.strip(),
            output,
            seed=arguments.seed,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            shift=arguments.shift,
            negative_prompt=arguments.negative_prompt,
        )
    except EditFailed as error:
        print(f"icve-edit: {error}", file=sys.stderr)
        return 3
    print(json.dumps(result, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
