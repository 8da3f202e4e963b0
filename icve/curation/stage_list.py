"""A curation pipeline as its YAML file says: variables, the folder that paths are relative to, and a list of stages."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from icve.curation.stage import Stage
from icve.data.identity import json_digest
from icve.runtime.class_lists import build_classes, read_class_list, shipped_file


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
        return build_classes([{"class_path": self.class_path, "init_args": self.parameters}], Stage, "the pipeline")[0][
            0
        ]


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
            if absent); `shard_size` (8); and variables, see `icve.runtime.class_lists.read_class_list`.
        overrides: `name=value` for entries of the file.

    Raises:
        ValueError: the file, an override, a class or a parameter is wrong.
    """
    path = shipped_file(path, "pipelines")
    content = read_class_list(path, "stages", "pipeline", overrides, {"shard_size"})
    root, shard_size = content.get("root", "input"), content.get("shard_size", 8)
    if root not in ("input", "output"):
        raise ValueError(f"root in {path} must be input or output, not {root!r}.")
    if not isinstance(shard_size, int) or shard_size < 1:
        raise ValueError(f"shard_size in {path} must be a whole number of at least 1, not {shard_size!r}.")
    specs = []
    for number, (stage, entry) in enumerate(build_classes(content["stages"], Stage, str(path)), 1):
        class_path, parameters = entry["class_path"], entry["init_args"]
        identity = json_digest([class_path, stage.version, _that_matter(entry)])
        specs.append(StageSpec(number, class_path, parameters, stage.version, stage.needs, stage.scope, identity))
    return Pipeline(tuple(specs), root, shard_size)


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
