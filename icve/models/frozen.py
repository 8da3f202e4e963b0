"""Frozen parts of an editor, whose weights stay in the folders they were published in.

Only a reference to that folder is saved with an editor, so that a run with a 16 GB text encoder does not write it into
every checkpoint; `save_pretrained(folder, embed=True)` makes a copy for an editor that is given away.
"""

import inspect
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from icve.data.identity import files_digest
from icve.models.protocols import ConfiguredModel
from icve.models.weight_files import index_tensors, read_json
from icve.runtime.atomic import new_folder, write_text
from icve.runtime.storage.remote_path import is_url

Precision = Literal["float16", "bfloat16", "float32"]


class FrozenConfig(FrozenDict):
    dtype: Precision | None


class FrozenComponent(ConfiguredModel, ABC):
    """A component of `EditPipeline` made of published models, read when they are first used.

    Constructing checks that the weights are there and whole, and allocates nothing: training from cached latents never
    loads them. `load` reads them straight to the component's device. The precision is the constructor's: casting a
    whole pipeline (`pipeline.to(torch.bfloat16)`, `from_pretrained(folder, torch_dtype=...)`) leaves it.

    Subclasses call `begin` in their constructor and implement `read` and `files`.
    """

    config: FrozenConfig
    FOLDERS: ClassVar[tuple[str, ...]]  # entries of the configuration that name folders of weights
    PRECISION: ClassVar[Precision] = "float16"  # on an accelerator, where none was asked for

    def begin(self, dtype: str | None, **folders: str | os.PathLike) -> None:
        """Check the precision, and remember folders as absolute paths.

        Raises:
            ValueError: for an unknown dtype.
        """
        if dtype not in (None, "float16", "bfloat16", "float32"):
            raise ValueError(
                f"The dtype of {type(self).__name__} is 'float16', 'bfloat16', 'float32' or null, not {dtype!r}."
            )
        absolute = {name: os.path.abspath(Path(folder).expanduser()) for name, folder in folders.items()}
        self.register_to_config(**absolute)
        self._loaded = False
        # Carries the device until there are weights.
        self.register_buffer("anchor", torch.zeros(1, dtype=getattr(torch, dtype or "float32")), persistent=False)

    @abstractmethod
    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
        """The models, by the attribute they become, on a device and in a precision."""

    @abstractmethod
    def files(self, name: str) -> list[Path]:
        """What to copy so that the folder `name` of the configuration can be done without."""

    def weights_digest(self) -> str:
        """Digest of the files of weights, which are not loaded for it: how a latent cache knows its encoder."""
        return files_digest(file for name in self.FOLDERS for file in self.files(name))

    # ---- weights, device and precision ---------------------------------------------------------------------------

    def load(self, device: torch.device | str | None = None) -> None:
        """Read the weights to the component's device, unless they have been read.

        Args:
            device: where they will be used, if elsewhere (offloading): decides a precision that was not asked for.

        Raises:
            FileNotFoundError, ValueError: no weights, damaged or not fitting ones.
        """
        if self._loaded:
            return
        home = self.anchor.device
        # Lightning validates in inference mode, whose tensors training could not use.
        with torch.inference_mode(False), torch.no_grad():
            for name, model in self.read(self._precision(torch.device(device or home)), home).items():
                setattr(self, name, model.eval().requires_grad_(False))
        self._loaded = True

    def prepare(self, device: torch.device) -> None:
        """Weights loaded, and on `device` in the precision that suits it unless one was asked for."""
        self.load(device)
        dtype = self._precision(device)
        for parameter in self.parameters():  # not the buffers: tables of positions stay float32
            if parameter.device == device and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)

    def execution_device(self) -> torch.device:
        """Where the component computes, which is not where its weights lie while they are offloaded."""
        for module in self.modules():
            if (device := getattr(getattr(module, "_hf_hook", None), "execution_device", None)) is not None:
                return torch.device(device)
        return self.device

    def _precision(self, device: torch.device) -> torch.dtype:
        # Releases run most frozen parts in half precision; CPUs are slow in it, or cannot.
        return getattr(torch, self.config.dtype or ("float32" if device.type == "cpu" else self.PRECISION))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep_precision(tensor: Tensor) -> Tensor:
            probe = fn(tensor.new_empty(0))
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        return super()._apply(keep_precision, recurse)

    def load_to_offload(self) -> None:
        """Read the weights where they are, in the precision of the accelerator that will compute."""
        self.load(torch.accelerator.current_accelerator())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights, loaded if need be; sequential offloading takes them from here."""
        self.load_to_offload()
        return super().state_dict(*args, **kwargs)

    def enable_group_offload(self, onload_device: torch.device, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; hooks are put on what is loaded, so everything is."""
        self.load(onload_device)
        super().enable_group_offload(onload_device, *args, **kwargs)

    # ---- folders -------------------------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]  # diffusers' options are about weights, which are not its to write
        self, save_directory: str | os.PathLike, is_main_process: bool = True, embed: bool = False
    ) -> None:
        """Write the configuration, and with `embed` the weights.

        Args:
            save_directory: folder; its `config.json` names the folders of weights, relatively where they lie inside.
            is_main_process: other processes write nothing.
            embed: copy the folders of weights into it.
        """
        if not is_main_process:
            return
        folder = Path(os.path.abspath(save_directory))
        folder.mkdir(parents=True, exist_ok=True)
        content = json.loads(self.to_json_string())
        for name in self.FOLDERS:
            weights = self._embed(name, folder / name) if embed else Path(content[name])
            content[name] = (weights.relative_to(folder) if weights.is_relative_to(folder) else weights).as_posix()
        write_text(folder / self.config_name, json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _embed(self, name: str, folder: Path) -> Path:
        """Copy the files of one folder of weights, whole or not at all."""
        files = self.files(name)
        if all(file.parent == folder for file in files):
            return folder
        with new_folder(folder, replace=True) as partial:
            for file in files:
                shutil.copyfile(file, partial / file.name)
        return folder

    @classmethod
    def from_pretrained(  # type: ignore[override]  # diffusers takes None as well, and weights instead
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """The component of a folder written by `save_pretrained`; its weights are read when first used.

        Args:
            pretrained_model_name_or_path: the folder.
            **kwargs: constructor arguments that replace the folder's, as another place of the weights. What diffusers
                passes to every part of a pipeline (`torch_dtype`, `variant`, ...) has no effect.

        Raises:
            FileNotFoundError: if the folder, or the weights it refers to, are not there.
            ValueError: if they are damaged, or another model's.
        """
        file = Path(pretrained_model_name_or_path) / cls.config_name
        if not file.is_file():
            raise FileNotFoundError(f"There is no '{file}': give a folder written by {cls.__name__}.save_pretrained.")
        content = read_json(file)
        for name in cls.FOLDERS:
            content[name] = str(file.parent / content.get(name, ""))  # an absolute path stays as it is
        known = inspect.signature(cls.__init__).parameters
        settings = {name: value for name, value in (content | kwargs).items() if name in known}
        try:
            return cls(**settings)
        except FileNotFoundError as error:
            reason = str(error).rstrip(".")
            raise FileNotFoundError(f"{reason} (the folder is the one that '{file}' refers to).") from error


def check_folder(folder: str | os.PathLike, owner: str, models: Sequence[str], hint: str) -> dict[str, Any]:
    """The configuration of a folder of weights, after a look whether it is complete.

    Args:
        folder: the folder.
        owner: what needs it, to begin an error with ("CLASS.OPTION").
        models: the models that may be in it, as their `_class_name` or `model_type`.
        hint: which folder to give, to end an error with.

    Raises:
        FileNotFoundError: no such folder, or one without config.json or weights.
        ValueError: of another model, damaged, or behind a URL.
    """
    if is_url(folder):
        raise ValueError(f"{owner} is {folder}, a URL: copy the folder to a disk, and give {hint}, as it is there.")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{owner}: the folder '{folder}' does not exist; give {hint}.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{owner}: '{folder}' has no config.json; give {hint}.")
    config = read_json(folder / "config.json")
    found = config.get("_class_name") or config.get("model_type")
    if found not in models:
        raise ValueError(f"{owner}: '{folder}' holds a {found}, not a {' or '.join(models)}; give {hint}.")
    try:
        index_tensors(folder)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{owner}: {error}") from error
    return config
