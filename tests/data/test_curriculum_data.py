import types

import pytest
from lightning.pytorch import LightningDataModule

from icve.data.curriculum_data import CurriculumDataModule


class Numbers(LightningDataModule):
    """Endless batches from where the trainer is, times `factor`."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.stages = factor, []

    def setup(self, stage):
        self.stages.append(stage)

    def train_dataloader(self):
        return (self.factor * number for number in range(self.trainer.start, 99))

    def val_dataloader(self):
        return [-self.factor]


def in_stage(name, start=0):
    return types.SimpleNamespace(lightning_module=types.SimpleNamespace(stage=name), start=start)


def test_the_stage_of_the_model_chooses_the_data():
    parts = {"clips": Numbers(10), "edits": Numbers(100)}
    data = CurriculumDataModule(parts)
    data.trainer = in_stage("edits", start=3)
    data.setup("fit")
    assert next(data.train_dataloader()) == 300
    assert data.val_dataloader() == [-100]
    assert (parts["clips"].stages, parts["edits"].stages) == ([], ["fit"])
    data.trainer = in_stage("clips")
    assert next(data.train_dataloader()) == 0
    assert data.latent_cache is None
    parts["clips"].latent_cache = "cache"
    assert data.latent_cache == "cache"


def test_a_checkpoint_keeps_the_state_of_the_stages_own_data():
    class Counting(Numbers):
        def state_dict(self):
            return {"factor": self.factor}

        def load_state_dict(self, state):
            self.loaded = state

    data = CurriculumDataModule({"clips": Counting(10), "edits": Counting(100)})
    data.trainer = in_stage("edits")
    assert data.state_dict() == {"factor": 100}
    data.load_state_dict({"factor": 7})
    assert data.stages["edits"].loaded == {"factor": 7}
    assert not hasattr(data.stages["clips"], "loaded")


def test_what_is_missing_is_named():
    data = CurriculumDataModule({"clips": Numbers(1)})
    data.trainer = in_stage("sft")
    with pytest.raises(ValueError, match="no stage 'sft', only clips"):
        data.setup("fit")
    with pytest.raises(ValueError, match="at least one stage"):
        CurriculumDataModule({})
