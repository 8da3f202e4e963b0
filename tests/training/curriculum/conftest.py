import pytest
import yaml

from tests.training.conftest import TINY_YAML
from tests.training.curriculum.curricula import NAMES, STEPS, fit, stage_data, stage_settings


@pytest.fixture(scope="session")
def config(tiny_manifest):
    """The tiny configuration as YAML, validating every two batches."""
    text = TINY_YAML.format(run="unused", manifest=tiny_manifest).replace("${seed_everything}", "5")
    return text.replace("val_check_interval: 4", "val_check_interval: 2")


@pytest.fixture(scope="session")
def curriculum(config, tmp_path_factory):
    """Write the configuration of a curriculum; options are those of single stages: more_clips={"patience": 2}."""

    def write(data=None, **options):
        stages = [
            {"name": name, "steps": STEPS[name], "settings": stage_settings(name), **options.get(name, {})}
            for name in NAMES
        ]
        own = yaml.safe_load(config)
        own["model"]["stage"] = "curriculum"
        del own["trainer"]["max_steps"]
        callback = {"class_path": "icve.training.run.curriculum.CurriculumCallback", "init_args": {"stages": stages}}
        own["trainer"]["callbacks"].insert(0, callback)
        parts = {name: stage_data(config, name) for name in NAMES} | (data or {})
        own["data"] = {"class_path": "icve.data.curriculum_data.CurriculumDataModule", "init_args": {"stages": parts}}
        path = tmp_path_factory.mktemp("curriculum") / "curriculum.yaml"
        path.write_text(yaml.safe_dump(own))
        return path

    return write


@pytest.fixture(scope="session")
def whole(curriculum, tmp_path_factory):
    """An uninterrupted run and its configuration."""
    path, run = curriculum(), tmp_path_factory.mktemp("whole") / "run"
    assert fit(path, run) == 0
    return path, run
