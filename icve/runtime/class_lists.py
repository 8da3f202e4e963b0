"""YAML files that list classes with options (`class_path`, `init_args`): curation pipelines, suites of metrics."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from icve.runtime.text_files import not_utf8


def shipped_file(path: str | Path, folder: str) -> Path:
    """The file itself, or else the shipped one of that name, for an installed package without a checkout.

    Args:
        path: a file, or the name of a shipped one, with or without its suffix.
        folder: where shipped ones lie, relative to the checkout ("pipelines", "configs/evaluation").
    """
    path = Path(path)
    package = Path(str(resources.files("icve")))
    name = path.name if path.suffix else f"{path.name}.yaml"
    places = [path, package / folder / name, package.parent / folder / name]
    return next((place for place in places if place.is_file()), path)


def read_class_list(
    path: Path, key: str, kind: str, overrides: Sequence[str] = (), optional: Collection[str] = ()
) -> dict[str, Any]:
    """Content of a YAML file with a list of classes.

    Args:
        path: of the file. Every entry at its top is a variable, used as `${name}` (`${oc.env:NAME,default}` reads the
            environment).
        key: of the list.
        kind: what such a file is called in messages.
        overrides: `name=value` for entries of the file, as in `frames=17` or `stages.2.init_args.margin=3`.
        optional: entries that an override may name though the file lacks them.

    Raises:
        ValueError: the file or an override is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded) or key not in loaded:
            raise ValueError(f"{path} is no {kind}: it has no list of {key}.")
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise ValueError(f"'{override}' is no override: write name=value, as in frames=17.")
            if name.split(".")[0] not in {*loaded, *optional}:
                known = ", ".join(str(entry) for entry in loaded if entry != key)
                raise ValueError(f"{path} has no '{name.split('.')[0]}' to override (it has {known}).")
            OmegaConf.update(loaded, name, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
        content = OmegaConf.to_container(loaded, resolve=True)
    except FileNotFoundError as error:
        raise ValueError(f"There is no {kind} {path}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path) or f"{path}: {error}.") from error
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"The {kind} {path} cannot be read: {_sentence(error)}") from error
    if not isinstance(content, dict) or not isinstance(content[key], list) or not content[key]:
        raise ValueError(f"{path} is no {kind}: {key} must be a list of class_path and init_args.")
    return {str(name): value for name, value in content.items()}


def build_classes(entries: list[Any], kind: type, where: str) -> list[tuple[Any, dict[str, Any]]]:
    """Objects from `class_path` and `init_args`, by the machinery that builds models and data in training.

    Args:
        entries: the list of such a file.
        kind: the base class that all of them have.
        where: named in messages.

    Returns:
        each object with its entry completed by the defaults of its parameters.

    Raises:
        ValueError: a class or a parameter is wrong; the entry is named.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    built = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("class_path", "?") if isinstance(entry, dict) else "?"
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--entry", type=kind)
        try:
            parsed = parser.parse_object({"entry": entry})
            made = parser.instantiate(parsed).entry
        except (ArgumentError, ValueError, TypeError, OSError, ImportError) as error:
            raise ValueError(f"{kind.__name__} {number} of {where} ({name}): {_sentence(error)}") from error
        completed = json.loads(parser.dump(parsed, format="json", skip_unset=False))["entry"]
        built.append((made, {"class_path": completed["class_path"], "init_args": completed.get("init_args", {})}))
    return built


def _sentence(error: Exception) -> str:
    """What jsonargparse and OmegaConf say, on one line and without their headings."""
    lines = [line.strip(" -\t") for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line and not line.startswith(("full_key", "object_type")))
    return text if text.endswith(".") else f"{text}."
