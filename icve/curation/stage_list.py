"""A curation pipeline as its YAML file says: variables, the folder that paths are relative to, and a list of stages."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from icve.curation.stage import Stage
from icve.data.identity import json_digest
from icve.runtime.text_files import not_utf8


class PipelineError(ValueError):
    """A pipeline that cannot be run, in one sentence."""


@dataclass(frozen=True)
class StageSpec:
    """A stage by its class and parameters, which is what travels to other processes.

    Attributes:
        number: its place, from 1.
        class_path: the class, "package.module.Class".
        parameters: of its constructor, all of them, as JSON has them.
        version, needs, scope: of the class (`needs` may depend on the parameters), see `Stage`.
        identity: digest of all that decides its results: class, version, and the parameters that matter.
    """

    number: int
    class_path: str
    parameters: dict[str, Any]
    version: int
    needs: Literal["cpu", "gpu"]
    scope: Literal["rows", "all"]
    identity: str

    @property
    def name(self) -> str:
        return self.class_path.rpartition(".")[2]

    @property
    def folder(self) -> str:
        return f"{self.number:02d}-{self.name}"

    def build(self) -> Stage:
        """The stage, not yet set up."""
        return build_stages([{"class_path": self.class_path, "init_args": self.parameters}])[0][0]


@dataclass(frozen=True)
class Pipeline:
    """Stages in their order.

    Attributes:
        root: "input" or "output": what the manifest's paths are relative to, see `icve.curation.stage.Workspace`.
        shard_size: inputs per shard, the unit of work that is done or redone as a whole.
    """

    stages: tuple[StageSpec, ...]
    root: Literal["input", "output"] = "input"
    shard_size: int = 8


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline and check every stage's parameters by building it.

    Args:
        path: YAML, or the name of a shipped one, with `stages`, a list of `class_path` and `init_args`; `root` ("input"
            if absent); `shard_size` (8);
            every other entry at the top is a variable, used as `${name}` (`${oc.env:NAME,default}` reads the
            environment).
        overrides: `name=value` for entries of the file, as in `frames=17` or `stages.2.init_args.margin=3`.

    Raises:
        PipelineError: the file, an override, a class or a parameter is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = find_pipeline(path)
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded) or "stages" not in loaded:
            raise PipelineError(f"{path} is no pipeline: it has no list of stages.")
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise PipelineError(f"'{override}' is no override: write name=value, as in frames=17.")
            if name.split(".")[0] not in {*loaded, "shard_size"}:
                known = ", ".join(str(key) for key in loaded if key != "stages")
                raise PipelineError(f"{path} has no '{name.split('.')[0]}' to override (it has {known}).")
            OmegaConf.update(loaded, name, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
        content = OmegaConf.to_container(loaded, resolve=True)
    except FileNotFoundError as error:
        raise PipelineError(f"There is no pipeline {path}.") from error
    except UnicodeDecodeError as error:
        raise PipelineError(not_utf8(path) or f"{path}: {error}.") from error
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise PipelineError(f"The pipeline {path} cannot be read: {_sentence(error)}") from error
    if not isinstance(content, dict) or not isinstance(content["stages"], list) or not content["stages"]:
        raise PipelineError(f"{path} is no pipeline: stages must be a list of class_path and init_args.")
    root, shard_size = content.get("root", "input"), content.get("shard_size", 8)
    if root not in ("input", "output"):
        raise PipelineError(f"root in {path} must be input or output, not {root!r}.")
    if not isinstance(shard_size, int) or shard_size < 1:
        raise PipelineError(f"shard_size in {path} must be a whole number of at least 1, not {shard_size!r}.")
    specs = []
    for number, (stage, entry) in enumerate(build_stages(content["stages"], str(path)), 1):
        class_path, parameters = entry["class_path"], entry["init_args"]
        identity = json_digest([class_path, stage.version, _that_matter(entry)])
        specs.append(StageSpec(number, class_path, parameters, stage.version, stage.needs, stage.scope, identity))
    return Pipeline(tuple(specs), root, shard_size)


def find_pipeline(path: str | Path) -> Path:
    """The file itself, or else the shipped one of that name, for an installed package without a checkout."""
    path = Path(path)
    package = Path(str(resources.files("icve")))
    places = [path, package / "pipelines" / path.name, package.parent / "pipelines" / path.name]
    return next((place for place in places if place.is_file()), path)


def build_stages(entries: list[dict[str, Any]], where: str = "the pipeline") -> list[tuple[Stage, dict[str, Any]]]:
    """Stages from `class_path` and `init_args`, by the machinery that builds models and data in training.

    Returns:
        each stage with its entry completed by the defaults of its parameters.

    Raises:
        PipelineError: a class or a parameter is wrong; the stage is named.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    built = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("class_path", "?") if isinstance(entry, dict) else "?"
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--stage", type=Stage)
        try:
            parsed = parser.parse_object({"stage": entry})
            stage = parser.instantiate(parsed).stage
        except (ArgumentError, ValueError, TypeError, OSError, ImportError) as error:
            raise PipelineError(f"Stage {number} of {where} ({name}): {_sentence(error)}") from error
        completed = json.loads(parser.dump(parsed, format="json", skip_unset=False))["stage"]
        built.append((stage, {"class_path": completed["class_path"], "init_args": completed.get("init_args", {})}))
    return built


def _that_matter(entry: Any) -> Any:
    """Parameters without those that change no result, also inside nested classes."""
    if isinstance(entry, list):
        return [_that_matter(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    if "class_path" not in entry:
        return {name: _that_matter(value) for name, value in entry.items()}
    module, _, name = entry["class_path"].rpartition(".")
    incidental: frozenset[str] = getattr(getattr(importlib.import_module(module), name), "incidental", frozenset())
    kept = {key: _that_matter(value) for key, value in (entry.get("init_args") or {}).items() if key not in incidental}
    return {"class_path": entry["class_path"], "init_args": kept}


def _sentence(error: Exception) -> str:
    """What jsonargparse and OmegaConf say, on one line and without their headings."""
    lines = [line.strip(" -\t") for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line and not line.startswith(("full_key", "object_type")))
    return text if text.endswith(".") else f"{text}."
