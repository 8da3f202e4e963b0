"""What a model family is: what loaders, planning, adapters, training and editing ask instead of its classes."""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # commands that show their help do not wait for torch
    from torch import Tensor, nn

Rename = Callable[[dict[str, "Tensor"]], dict[str, "Tensor"]]


@dataclass(frozen=True)
class Base:
    """Published weights that a family's models are made from or contain.

    Attributes:
        name: what they are called.
        link: where their licence is.
        terms: the licence's name, and what it asks for in a sentence.
    """

    name: str
    link: str
    terms: str


class Weights(Protocol):
    """Layouts in which a family's transformer is stored; a module of the family has these functions."""

    # Formats other than diffusers' that it is written as: name -> writer of (model, folder, bytes per file).
    EXPORTS: Mapping[str, Callable[[Any, Path, int | None], None]]

    def recognise(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
        """Whether a config.json ({} where there is none) and tensors on the meta device are this family's."""
        ...

    def locate(self, folder: Path) -> Path | None:
        """The transformer's folder in a tree of files as others publish it, or None."""
        ...

    def read(
        self, config: dict[str, Any], tensors: dict[str, Tensor], overrides: dict[str, Any]
    ) -> tuple[dict[str, Any], Rename]:
        """The transformer's configuration, in which overrides take their places; and what renames stored tensors.

        Raises:
            ValueError, KeyError: they are not a whole transformer of a known kind.
        """
        ...

    def mismatch(self, expected: dict[str, Tensor], given: dict[str, Tensor]) -> str | None:
        """Why tensors do not fit a model, and the likely cause; None where they do."""
        ...


class AdapterNames(Protocol):
    """How others name the layers of a family's transformer in adapters; a module of the family has these functions."""

    def known_layer(self, layer: str) -> str:
        """A layer named in a file, as the family's layouts have it. Raises KeyError for none of its layers."""
        ...

    def split(self, layer: str, rows: Tensor, width: int) -> dict[str, Tensor]:
        """The transformer's layers that one of a layout stacks, with their rows. Raises ValueError for a wrong size."""
        ...

    def stacked(self, layer: str) -> tuple[str, list[str]]:
        """Original name of one of the transformer's layers, and all layers that it stacks. Raises KeyError."""
        ...

    def original_rows(self, original: str, rows: Tensor) -> Tensor:
        """The rows of an original layer in the order that it has them."""
        ...


@dataclass(frozen=True)
class Family:
    """A model family: one folder in `icve/models`, one entry in `icve.models.families`.

    Classes and functions are named, not imported: a command that only shows its help loads none of them.

    Attributes:
        name: of the family; that of its folder.
        transformer: class path; None of a family that brings only frozen parts.
        codecs, text_encoders: class paths of its frozen parts.
        weights: module with the functions of `Weights`.
        adapters: module with the functions of `AdapterNames`.
        open_base: function: folder of the published base model -> (codec, text encoder).
        convert_codec: function: (folder or file, output folder, dtype, bytes per file) -> the codec, which it wrote in
            diffusers' layout.
        tiny: functions by name: (folder) -> None, which writes a tiny random base model there, in the layout that the
            real one is published in: for tests and for trying configurations. The first is called as the family; others
            as the versions that differ in what a configuration says.
        start_from: function of the name of a tensor of its transformer: the name of the one that it starts from in a
            base model's, or None for one that keeps its initial value. Needed only where training starts from another
            model's weights; several tensors may start from one (mixtures).
        exports: formats other than diffusers' that it can be written as, the names in `Weights.EXPORTS`.
        blocks: the transformer's lists of blocks, by the argument that counts them, in the order they run.
        lora_targets: regular expression of the layers that an adapter changes unless told otherwise.
        sampling: the clip that the released model edits: num_frames, height, width (pixels), and what else differs from
            `icve.editing.sampling.Sampling`.
        bases: weights its models are made from, with their licences.
        aliases: words in the names of its models.
        advice: what to put where weights are missing, as the middle of a sentence.
    """

    name: str
    transformer: str | None = None
    codecs: tuple[str, ...] = ()
    text_encoders: tuple[str, ...] = ()
    weights: str | None = None
    adapters: str | None = None
    open_base: str | None = None
    convert_codec: str | None = None
    tiny: Mapping[str, str] = field(default_factory=dict)
    start_from: str | None = None
    exports: tuple[str, ...] = ()
    blocks: Mapping[str, str] = field(default_factory=dict)
    lora_targets: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    bases: tuple[Base, ...] = ()
    aliases: tuple[str, ...] = ()
    advice: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class paths of all its parts."""
        return (*([self.transformer] if self.transformer else []), *self.codecs, *self.text_encoders)

    def transformer_class(self) -> type[nn.Module]:
        assert self.transformer is not None
        return located(self.transformer)

    def layouts(self) -> Weights:
        assert self.weights is not None
        return located(self.weights)

    def adapter_names(self) -> AdapterNames:
        assert self.adapters is not None
        return located(self.adapters)


def located(path: str) -> Any:
    """The module, class or function at a dotted path.

    Raises:
        ImportError: there is none.
    """
    found = pydoc.locate(path)
    if found is None:
        raise ImportError(f"There is no {path}.")
    return found
