"""The parts of a training configuration that make latents, built without the trainer and the transformer."""

from argparse import ArgumentError
from dataclasses import dataclass

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from torch import nn

from icve.training.run.configuration import parse_configuration
from icve.training.run.paths import check_paths


@dataclass(frozen=True)
class ConfiguredParts:
    """Codec, text encoder and data module of a configuration, and the cache it names (``data.init_args.latents``).

    The data module itself knows nothing of the cache: it decodes.
    """

    codec: nn.Module
    text_encoder: nn.Module
    data: LightningDataModule
    latents: str | None


def configured_parts(arguments: list[str]) -> ConfiguredParts:
    """Build the frozen parts and the data module of `icve fit` with these arguments.

    A transformer of billions of parameters, which `icve fit` would build as well, is left alone.

    Raises:
        ValueError: the configuration cannot be used, or is a curriculum's; in one sentence.
        FileNotFoundError: a file it names is missing.
    """
    config = parse_configuration(arguments)
    # No transformer is built, and the cache may be what is about to be made.
    check_paths(config, has_checkpoint=True, makes_latents=True)
    if config.get("data") is None:
        raise ValueError("The configuration names no data module: set data.class_path.")
    chosen = {name: config["model"]["frozen"][name] for name in ("codec", "text_encoder")}
    data = config["data"].clone()
    latents = data["init_args"].pop("latents", None) if "init_args" in data else None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "codec")
    parser.add_subclass_arguments(nn.Module, "text_encoder")
    parser.add_subclass_arguments(LightningDataModule, "data")
    build = getattr(parser, "instantiate", parser.instantiate_classes)  # its name from jsonargparse 4.49 on
    try:
        parts = build(parser.parse_object({**chosen, "data": data}))
    except (ValueError, TypeError, ArgumentError) as error:
        raise ValueError(f"The configuration cannot be used: {error}") from error
    return ConfiguredParts(parts["codec"], parts["text_encoder"], parts["data"], latents)
