"""Adapters of an editor's transformer, loaded from any layout and switched through diffusers' methods."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

from icve.models.adapters.downloads import local_adapter
from icve.models.adapters.files import AdapterSource, check_fits, read_adapter
from icve.models.lora import peft_adapter


class AdapterLoaderMixin(LoraBaseMixin):
    """diffusers' loader of a pipeline with a `transformer`, which reads every layout that `adapter_files` knows."""

    transformer: Any
    _lora_loadable_modules: ClassVar = ["transformer"]  # type: ignore[misc]  # diffusers gives it no type but []

    def load_lora_weights(  # type: ignore[override]  # as diffusers' other loaders differ from their base class
        self,
        pretrained_model_name_or_path_or_dict: AdapterSource,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an adapter of the transformer, switchable through diffusers' methods (`set_adapters`, `fuse_lora` ...).

        Args:
            pretrained_model_name_or_path_or_dict: a file or folder of any layout that `adapter_files` reads,
                the tensors of one by name, or the name of a repository on the Hub.
            adapter_name, hotswap: as in diffusers.
            **kwargs: `weight_name` and `subfolder` of a folder or repository; of a repository what diffusers takes.

        Raises:
            ImportError: peft is not installed.
            FileNotFoundError: there is no adapter.
            ValueError: it is damaged, of another kind or belongs to another model; the first key that does not fit is
                named.
        """
        if find_spec("peft") is None:
            raise ImportError("LoRA needs peft: pip install 'icve[lora]'.")
        if adapter_name is not None and ("." in adapter_name or hasattr(nn.ModuleDict, adapter_name)):
            raise ValueError(f"An adapter cannot have the name {adapter_name!r}, which torch uses: choose another one.")
        source, low_memory = pretrained_model_name_or_path_or_dict, kwargs.pop("low_cpu_mem_usage", True)
        if not isinstance(source, Mapping):
            source = local_adapter(source, **kwargs)
        adapter = read_adapter(source)
        check_fits(adapter, self.transformer, source)
        state, config = peft_adapter(adapter)
        self.transformer.load_lora_adapter(
            state,
            adapter_name=adapter_name,
            metadata={f"transformer.{name}": value for name, value in config.items()},
            _pipeline=self,
            low_cpu_mem_usage=low_memory,
            hotswap=hotswap,
        )

    def fuse_lora(self, components: list[str] | None = None, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; components: ["transformer"] unless given."""
        super().fuse_lora(components or ["transformer"], *args, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """As in diffusers; components: ["transformer"] unless given."""
        super().unfuse_lora(components=components or ["transformer"], **kwargs)
