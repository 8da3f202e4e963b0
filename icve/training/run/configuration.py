"""A training configuration as parsed, with nothing built of it: for commands that look at a run before it runs."""

from typing import Any

from jsonargparse import Namespace

from icve.data.curriculum_data import CurriculumDataModule
from icve.training.run.command import TrainingCommand
from icve.training.run.stage_runs import stages_of

CURRICULUM_DATA = f"{CurriculumDataModule.__module__}.{CurriculumDataModule.__qualname__}"


class _Parsed(TrainingCommand):
    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    _set_seed = before_instantiate_classes = instantiate_classes = _run_subcommand = _nothing


def parse_configuration(arguments: list[str]) -> Namespace:
    """The configuration that `icve fit` with these arguments would train: of one stage.

    Raises:
        ValueError: it cannot be parsed, or is a curriculum's; in one sentence.
    """
    parsed: Any = _Parsed(["fit", *arguments]).config
    config = parsed["fit"]
    # One of its stages alone (model.stage) would still lack what the curriculum sets for it.
    if stages_of(config) or (config.get("data") or {}).get("class_path") == CURRICULUM_DATA:
        raise ValueError(
            "The configuration trains several stages: use the configuration of one of them, e.g. configs/sft.yaml."
        )
    return config
