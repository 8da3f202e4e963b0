"""Options of `icve edit`: the command line over the YAML of ``--config``, checked."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icve.data.media.media_paths import refuse_foreign
from icve.runtime.text_files import not_utf8

if TYPE_CHECKING:  # torch and diffusers load only once the arguments are known to be good
    from icve.editing.items import Item
    from icve.editing.jobs import Settings
    from icve.editing.pipeline import EditPipeline


def parse_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line over the YAML of --config. Raises ValueError, FileNotFoundError for what is wrong."""
    arguments = parser.parse_args(argv)
    if arguments.config:
        parser.set_defaults(**_read_config(Path(arguments.config), parser))
        arguments = parser.parse_args(argv)
    for name in ("input", "output"):
        if not getattr(arguments, name):
            raise ValueError(f"--{name} is missing; icve edit --help shows examples.")
    refuse_foreign(value for name, value in vars(arguments).items() if name not in ("instruction", "negative_prompt"))
    if arguments.instruction is not None and not str(arguments.instruction).strip():
        raise ValueError("The instruction is empty: say what to change.")
    if (arguments.transformer is None) != (arguments.base is None) or (arguments.base and arguments.model):
        raise ValueError("--transformer and --base go together and take the place of --model.")
    for name in ("steps", "batch_size", "report", "pixels", "sequence_parallel_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if arguments.shift is not None and arguments.shift <= 0:
        raise ValueError(f"--shift must be positive, got {arguments.shift}.")
    from icve.data.manifest import column_names  # Arrow takes a while

    arguments.columns = column_names(arguments.columns or ())
    return arguments


def _read_config(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"The configuration {path} does not exist.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path)) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold options by name, as in 'steps: 20'.")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1, cutoff=0.0)[0].replace("_", "-")
            raise ValueError(f"{path} has no option {key!r}; the nearest is {near!r}.")
        action = actions[name]
        try:
            if name == "columns" and isinstance(value, dict):
                value = [f"{its}={ours}" for its, ours in value.items()]
            elif action.nargs == 0 and not isinstance(value, bool):
                raise ValueError("true or false")
            elif callable(action.type):
                value = action.type(value)
            elif action.choices is not None and value not in action.choices:
                raise ValueError(f"one of {', '.join(action.choices)}")
            elif action.nargs is None and not isinstance(value, str | type(None)):
                value = str(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {value!r} is no value for {key!r} ({error}).") from error
        checked[name] = value
    return checked


def usable(items: Sequence[Item], pipeline: EditPipeline) -> tuple[list[Item], str]:
    """The items without masks and references that the editor takes none of, and a sentence that says so, or ""."""
    takes = {"mask": pipeline.takes_masks, "reference": pipeline.takes_references}
    ignored = {
        name: count
        for name, count in ((name, sum(getattr(i, name) is not None for i in items)) for name in takes)
        if count and not takes[name]
    }
    words = " and ".join(f"the {name}s of {count} items" for name, count in ignored.items())
    kept = [
        replace(i, mask=i.mask if takes["mask"] else None, reference=i.reference if takes["reference"] else None)
        for i in items
    ]
    return kept, f"The editor takes no {' and no '.join(ignored)}: {words} are ignored." if ignored else ""


def settings_of(arguments: argparse.Namespace, pipeline: EditPipeline) -> Settings:
    """How to edit: the options, and the model's defaults for what they leave open.

    Raises:
        ValueError: an option that this model cannot follow.
    """
    from icve.editing.jobs import Settings

    for name, takes in (("mask", pipeline.takes_masks), ("reference", pipeline.takes_references)):
        if getattr(arguments, name) is not None and not takes:
            raise ValueError(
                f"This editor was trained without {name}s: leave --{name} out, or give a --model that takes one."
            )

    given = {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "guidance_until": None,
        "shift": arguments.shift,
        "solver": arguments.solver,
        "negative_prompt": arguments.negative_prompt,
    }
    if arguments.window is not None and not pipeline.grid.is_length(arguments.window):
        raise ValueError(f"--window must be {pipeline.grid.lengths} frames, got {arguments.window}.")
    names = {"num_inference_steps": "steps"}
    sampling = {
        name: pipeline.default(names.get(name, name)) if value is None else value for name, value in given.items()
    }
    if arguments.shift is None and pipeline.default("shift_tokens") is not None:
        sampling["shift"] = None  # every window's own, by its size
    return Settings(
        sampling=sampling,
        window=arguments.window or pipeline.default("num_frames"),
        budget=arguments.pixels or pipeline.default("height") * pipeline.default("width"),
        size=arguments.size,
        side_by_side=arguments.side_by_side,
        batch_size=arguments.batch_size,
        grid=pipeline.grid,
        format=arguments.format,
    )
