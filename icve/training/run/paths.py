"""Files that a configuration names and that are not there: said at once, before anything large is loaded."""

import pydoc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import Namespace

from icve.data.media.media_paths import foreign_path
from icve.models.families import family_of_class
from icve.runtime.storage.remote_path import RemotePath, as_path

MANIFEST = "write one row per pair of clips there (docs/data.md)"
LATENTS = "make it with icve encode"
ADAPTED = "put the transformer to adapt there, in a layout of docs/checkpoints.md"
# Options of the data module's init_args that name files.
_DATA = {"manifest": MANIFEST, "val_manifest": MANIFEST, "latents": LATENTS}


def check_paths(config: Mapping[str, Any] | Namespace, has_checkpoint: bool, makes_latents: bool = False) -> None:
    """Check the paths of a parsed configuration of `icve fit`, `icve validate` or `icve encode`.

    Args:
        config: of the subcommand.
        has_checkpoint: the transformer's weights come from --ckpt_path, so that `model.start.pretrained` is not read.
        makes_latents: the cache of latents is written, not read.

    Raises:
        FileNotFoundError: the first path that is not there, and what to put where.
        ValueError: the run is to be written to a URL.
    """
    run = (config.get("trainer") or {}).get("default_root_dir")
    if run is not None and (problem := foreign_path(run, f"trainer.default_root_dir, {run},")):
        raise FileNotFoundError(problem)
    if run is not None and isinstance(as_path(run), RemotePath):
        raise ValueError(
            f"trainer.default_root_dir is {run}, a URL: name a local folder for the run, and give the URL to "
            "Checkpoints as `upload`, which copies its checkpoints there (docs/remote_data.md)."
        )
    variables = config.get("variables") or {}
    for option, path, advice in _named_paths(config, has_checkpoint):
        if makes_latents and advice is LATENTS:
            continue
        if not as_path(path).expanduser().exists():
            if problem := foreign_path(path, f"{option}, {path},"):
                raise FileNotFoundError(problem)
            elsewhere = f"correct {option}"
            if name := next((name for name, value in variables.items() if path.startswith(str(value))), None):
                elsewhere = f"say where it is in variables.{name} or the environment variable named there"
            raise FileNotFoundError(f"{option} is {path}, which does not exist: {advice}, or {elsewhere}.")


def _named_paths(config: Mapping[str, Any] | Namespace, has_checkpoint: bool) -> Iterator[tuple[str, str, str]]:
    """(option, path, what to put there)."""
    model = config.get("model") or {}
    start = model.get("start") or {}
    if start.get("pretrained") is not None and not has_checkpoint:
        advice = ADAPTED if start.get("lora") else _advice(model.get("transformer") or {})
        yield "model.start.pretrained", start["pretrained"], advice
    parts = [
        (f"model.frozen.{name}", part, dict.fromkeys(_folders(part), _advice(part)))
        for name, part in (model.get("frozen") or {}).items()
    ]
    data = (config.get("data") or {}).get("init_args") or {}
    for number, entry in enumerate(data.get("mixture") or []):
        yield f"data.init_args.mixture[{number}].manifest", entry["manifest"], MANIFEST
    for key, part, options in [*parts, ("data", config.get("data"), _DATA)]:
        arguments = (part or {}).get("init_args") or {}
        for name, advice in options.items():
            if isinstance(arguments.get(name), str):
                yield f"{key}.init_args.{name}", arguments[name], advice


def _advice(part: Mapping[str, Any] | Namespace) -> str:
    """What to put where weights of a part are missing."""
    family = family_of_class(part.get("class_path") or "")
    return family.advice if family is not None and family.advice else "put its weights there"


def _folders(part: Mapping[str, Any] | Namespace) -> Sequence[str]:
    """Options of a frozen part that name folders of weights."""
    return getattr(pydoc.locate(part.get("class_path") or ""), "FOLDERS", ())
