"""A training configuration as parsed, with nothing built of it: for commands that look at a run before it runs."""

from typing import Any

from jsonargparse import Namespace

from icve.training.command import TrainingCommand


class _Parsed(TrainingCommand):
    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def parse_configuration(arguments: list[str]) -> Namespace:
    """The configuration that `icve fit` with these arguments would train.

    Raises:
        ValueError: it cannot be parsed, in one sentence.
    """
    config: Any = _Parsed(["fit", *arguments]).config
    return config["fit"]
