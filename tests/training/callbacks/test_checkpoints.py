import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from icve.cli.main import main
from icve.editing.editors import load_editor, resolve_model_folder
from icve.editing.pipeline import EditPipeline
from icve.flow import TimestepDensity
from icve.models.loading import load_transformer
from icve.models.run_folders import exported, saved_checkpoints
from icve.runtime.folder_contents import describe, find_damage, write_contents
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.ema import EMA
from icve.training.checkpoints import checkpoint_io, model_folder
from icve.training.checkpoints.checkpoint_io import CheckpointFolders, CheckpointNotWritten
from icve.training.checkpoints.starting_weights import ranges_for
from icve.training.checkpoints.state_files import WEIGHTS, Slice, StateFiles, write_slices
from icve.training.module import Sampling
from tests.training.conftest import tiny_transformer


def names(folder):
    return [path.name for path in saved_checkpoints(folder / "checkpoints")]


def test_every_n_steps_and_at_the_end_the_newest_stay(make_module, make_trainer, make_data, tmp_path):
    make_trainer(7, callbacks=[Checkpoints(every_n_steps=2, keep_last=2)], accumulate_grad_batches=2).fit(
        make_module(), datamodule=make_data()
    )
    assert names(tmp_path) == ["step-000006", "step-000007"]
    assert os.readlink(tmp_path / "checkpoints" / "last") == "step-000007"
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["last", "step-000006", "step-000007"]


def test_zero_keeps_all(make_module, make_trainer, make_data, tmp_path):
    make_trainer(3, callbacks=[Checkpoints(1, keep_last=0)]).fit(make_module(), datamodule=make_data())
    assert names(tmp_path) == ["step-000001", "step-000002", "step-000003"]


def test_a_run_stopped_early_is_saved_where_it_stopped(make_module, make_trainer, make_data, tmp_path):
    module = make_module()

    def stop(*args):
        module.trainer.should_stop = module.trainer.global_step == 3

    module.on_train_batch_end = stop
    make_trainer(9, callbacks=[Checkpoints(100)]).fit(module, datamodule=make_data())
    assert names(tmp_path) == ["step-000003"]


def test_the_best_is_kept(make_module, make_trainer, make_data, tmp_path):
    module, scores = make_module(), iter([3.0, 1.0, 2.0, 4.0])
    module.validation_step = lambda batch, batch_idx: module.log("val/loss", next(scores))
    trainer = make_trainer(4, callbacks=[Checkpoints(1, keep_last=1, monitor="val/loss")], val_check_interval=1)
    trainer.fit(module, datamodule=make_data(validation=1))
    assert names(tmp_path) == ["step-000002", "step-000004"]
    assert os.readlink(tmp_path / "checkpoints" / "best") == "step-000002"


@pytest.fixture
def train(make_module, make_trainer, make_data, tmp_path):
    """Train four steps, from a checkpoint if one is named; each is saved and then validated with the next figure.

    Returns, of when training began: the newest checkpoint, and what `best` led to after a first validation.
    """

    def run(scores, name=None):
        module, scores, begun = make_module(), list(scores), []
        checkpoints, folder = Checkpoints(1, 0, monitor="val/loss"), tmp_path / "checkpoints"
        module.validation_step = lambda batch, batch_idx: module.log("val/loss", scores.pop(0))
        module.on_train_start = lambda: begun.extend((checkpoints.newest, os.path.realpath(folder / "best")))
        make_trainer(4, [checkpoints], val_check_interval=1).fit(
            module, datamodule=make_data(validation=1), ckpt_path=name and folder / name
        )
        return [name and os.path.basename(name) for name in begun]

    return run


def test_a_validation_that_a_kill_came_before_is_made_up_for(train, tmp_path):
    with pytest.raises(IndexError):  # there is no second figure, in place of a kill
        train([3.0])
    assert names(tmp_path) == ["step-000001", "step-000002"]
    assert train([1.0, 2.0, 2.0], "step-000002") == ["step-000002", "step-000002"]
    assert os.readlink(tmp_path / "checkpoints" / "best") == "step-000002"


def test_the_best_is_none_of_a_later_step_than_the_run_goes_on_from(train, tmp_path):
    assert train([3.0, 4.0, 2.0, 1.0]) == [None, "best"]
    assert train([4.0, 5.0, 5.0], "step-000002") == ["step-000002", "step-000001"]
    assert os.readlink(tmp_path / "checkpoints" / "best") == "step-000001"
    shutil.rmtree(tmp_path / "checkpoints" / "step-000001")
    assert train([4.0, 5.0, 5.0], "step-000002") == ["step-000002", "step-000002"]
    assert os.readlink(tmp_path / "checkpoints" / "best") == "step-000002"


def test_training_does_not_wait_for_the_best_to_be_written(tmp_path):
    checkpoints, folder = Checkpoints(monitor="val/loss"), tmp_path / "checkpoints"
    strategy = SimpleNamespace(broadcast=lambda figure: figure)
    trainer = SimpleNamespace(global_step=2, is_global_zero=True, sanity_checking=False, strategy=strategy)
    trainer.state, trainer.callback_metrics = SimpleNamespace(fn="fit"), {"val/loss": torch.tensor(1.0)}
    trainer.default_root_dir = tmp_path
    checkpoints.setup(trainer, None, "fit")
    checkpoints._saved_step, checkpoints.newest = 2, folder / "step-000002"
    checkpoints.on_validation_end(trainer, None)
    assert checkpoints.best == "step-000002"
    assert not folder.exists()
    checkpoints.newest.mkdir(parents=True)  # when it is written
    checkpoints._written(checkpoints.newest)
    assert os.readlink(folder / "best") == os.readlink(folder / "last") == "step-000002"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_some_checkpoints_are_exported_and_the_last_of_the_run(
    make_module, make_trainer, make_data, tmp_path, asynchronous, caplog
):
    ema = EMA(decay=0.5)
    options = {"export_every": 2, "export_dtype": "bfloat16", "asynchronous": asynchronous}
    seen, module = {}, make_module()

    def look(*args):
        trainer.strategy.checkpoint_io.finish()
        saved = saved_checkpoints(tmp_path / "checkpoints")
        seen[trainer.global_step] = {folder.name[-1]: exported(folder) for folder in saved}

    module.on_train_batch_start = look
    trainer = make_trainer(5, [ema, Checkpoints(1, 1, **options)])
    trainer.fit(module, datamodule=make_data())
    # The newest of those that are exported is kept.
    assert seen == {0: {}, 1: {"1": False}, 2: {"2": True}, 3: {"2": True, "3": False}, 4: {"4": True}}
    assert names(tmp_path) == ["step-000005"]
    for path in (tmp_path, tmp_path / "checkpoints" / "last"):
        weights = load_transformer(path).state_dict()
        assert all(torch.equal(value, ema.shadow[name].bfloat16()) for name, value in weights.items())
    assert "newest editor" not in caplog.text


@pytest.fixture
def partly_exported(make_module, make_trainer, make_data, tmp_path):
    """A run as it was at step 3, of which step 2 is exported; its average then."""
    ema = EMA(decay=0.5)
    trainer = make_trainer(3, [ema, Checkpoints(1, 0, export_every=2, export_dtype="bfloat16")])
    trainer.fit(make_module(), datamodule=make_data())
    last = tmp_path / "checkpoints" / "step-000003"
    (last / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (last / "contents.json").unlink()
    write_contents(last, describe(last, filter(Path.is_file, last.rglob("*"))))
    return ema.shadow


def test_edits_take_the_newest_exported_and_say_so(partly_exported, tmp_path, caplog):
    for _ in range(2):  # once
        assert resolve_model_folder(tmp_path) == tmp_path / "checkpoints" / "step-000002"
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"The newest editor of {tmp_path} is that of step 2 ({tmp_path / 'checkpoints' / 'step-000002'})"
    ]
    assert load_transformer(tmp_path).dtype == torch.bfloat16
    (tmp_path / "checkpoints" / "step-000002" / "contents.json").unlink()  # damaged, and no other is exported
    assert resolve_model_folder(tmp_path) == tmp_path / "checkpoints" / "step-000003"


def test_a_checkpoint_that_is_not_exported_edits_and_is_converted(partly_exported, make_data, tmp_path):
    checkpoint, out = tmp_path / "checkpoints" / "step-000003", tmp_path / "out"
    editor = EditPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert editor.transformer.dtype == torch.bfloat16
    editor = load_editor(checkpoint)
    assert all(torch.equal(value, partly_exported[name]) for name, value in editor.transformer.state_dict().items())
    video = make_data().batch(0)["source"][:1]
    assert editor(video, "make it blue", num_inference_steps=1, output_type="uint8").video.shape == video.shape
    assert main(["convert", "weights", "--input", str(checkpoint), "--output", str(out)]) == 0
    assert all(torch.equal(value, partly_exported[name]) for name, value in load_transformer(out).state_dict().items())


@pytest.mark.parametrize("name", [".", "checkpoints/last", "checkpoints/step-000003"])
def test_stages_start_from_the_average_as_it_was_trained(partly_exported, make_module, tmp_path, name):
    module = make_module(seed=9)
    assert ranges_for(module.transformer, tmp_path / name).name == "step-000003"
    module.load_weights(tmp_path / name)
    assert all(torch.equal(value, partly_exported[key]) for key, value in module.transformer.state_dict().items())
    module.load_weights(tmp_path / "checkpoints" / "step-000002")  # exported, and rounded
    weights = module.transformer.proj_out.weight
    assert not torch.equal(weights, weights.bfloat16().float())


def test_a_run_that_stops_at_a_checkpoint_is_exported(make_module, make_trainer, make_data, tmp_path):
    module = make_module()

    def stop(*args):  # after the callbacks
        module.trainer.should_stop = module.trainer.global_step == 2

    module.on_train_batch_end = stop
    make_trainer(9, [Checkpoints(1, export_every=0, asynchronous=True)]).fit(module, datamodule=make_data())
    assert {path.name: exported(path) for path in saved_checkpoints(tmp_path / "checkpoints")} == {
        "step-000001": False,
        "step-000002": True,
    }


def test_an_unknown_figure_is_named(make_module, make_trainer, make_data):
    trainer = make_trainer(1, callbacks=[Checkpoints(1, monitor="val/lost")], val_check_interval=1)
    with pytest.raises(ValueError, match=r"'val/lost'.*val/loss"):
        trainer.fit(make_module(), datamodule=make_data(validation=1))


def test_remains_of_a_killed_save_are_removed(make_module, make_trainer, make_data, tmp_path):
    stale = tmp_path / "checkpoints" / ".step-000001.99.tmp"
    stale.mkdir(parents=True)
    (stale / "trainer.ckpt").touch()
    (tmp_path / "checkpoints" / ".last.99.tmp").symlink_to("nowhere")
    make_trainer(1, callbacks=[Checkpoints(1)]).fit(make_module(), datamodule=make_data())
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["last", "step-000001"]


@pytest.mark.parametrize(("own", "saved"), [(None, 40), (9, 9)])
def test_the_saved_editor_shifts_by_size_as_training_did(make_module, own, saved):
    module = make_module(density=TimestepDensity(shift=3.0, shift_tokens=40), sampling=Sampling(shift_tokens=own))
    assert module.pipeline().default("shift_tokens") == saved
    assert make_module().pipeline().default("shift_tokens") is None


def test_the_folder_is_a_working_editor_with_the_averaged_weights(make_module, make_trainer, make_data, tmp_path):
    ema = EMA(decay=0.5)
    module = make_module(sampling=Sampling(3, 2.0, 1.5, num_frames=5, height=16, width=16, fps=8.0), predicts="epsilon")
    make_trainer(2, callbacks=[ema, Checkpoints(2)]).fit(module, datamodule=make_data())
    checkpoint = tmp_path / "checkpoints" / "last"
    pipeline = EditPipeline.from_pretrained(checkpoint)
    for name, weights in pipeline.transformer.state_dict().items():
        assert torch.equal(weights, ema.shadow[name])
    assert not torch.equal(pipeline.transformer.proj_out.weight, module.transformer.proj_out.weight)
    assert pipeline.default("steps") == 3
    assert pipeline.default("shift") == 1.5
    assert pipeline.config.prediction == "epsilon"
    video = make_data().batch(0)["source"][:1]
    assert pipeline(video, "make it blue", output_type="uint8").video.shape == video.shape
    saved = CheckpointFolders().load_checkpoint(checkpoint)
    assert all(key.startswith("transformer.") for key in saved["state_dict"])


def test_weights_warm_start_from_a_checkpoint(make_module, make_trainer, make_data, tmp_path):
    ema = EMA(decay=0.5)
    make_trainer(2, callbacks=[ema, Checkpoints(2)]).fit(make_module(), datamodule=make_data())
    other = make_module(seed=9)
    other.load_weights(tmp_path / "checkpoints" / "step-000002")
    for name, weights in other.transformer.state_dict().items():
        assert torch.equal(weights, ema.shadow[name])


@pytest.mark.parametrize(("processes", "files"), [(1, 2), (2, 4), (3, 6)])
def test_files_of_the_editor_are_shared_and_as_large_as_they_may_be(
    make_module, tmp_path, monkeypatch, processes, files
):
    module = make_module(transformer=tiny_transformer().bfloat16())
    weights = module.transformer.state_dict()
    write_slices(tmp_path / "state", 0, 1, [Slice(WEIGHTS, name, 0, value) for name, value in weights.items()])
    size = sum(value.nbytes for value in weights.values())
    monkeypatch.setattr(model_folder, "SHARD_BYTES", size // processes - 1)
    shapes = {name: value.shape for name, value in weights.items()}
    folder = tmp_path / "model" / "transformer"
    for rank in range(processes):
        model_folder.write_weights(shapes, tmp_path / "model", StateFiles(tmp_path / "state"), (rank, processes), None)
        assert len(list(folder.glob(f"*-of-{files:05d}.safetensors"))) == (files // processes) * (rank + 1)
    (index,) = folder.glob("*.index.json")
    assert json.loads(index.read_text())["metadata"]["total_size"] == size
    written = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    assert all(torch.equal(written[name], value) for name, value in weights.items())


def test_written_while_training_goes_on(make_module, make_trainer, make_data, tmp_path):
    for name, asynchronous in (("waited", False), ("meanwhile", True)):
        checkpoints = Checkpoints(1, keep_last=2, asynchronous=asynchronous)
        make_trainer(4, [EMA(), checkpoints], tmp_path / name).fit(make_module(), datamodule=make_data())
        kept = [folder.name for folder in saved_checkpoints(tmp_path / name / "checkpoints")]
        assert kept == ["step-000003", "step-000004"]
    for folder in ("step-000003", "last"):
        waited, meanwhile = (tmp_path / name / "checkpoints" / folder for name in ("waited", "meanwhile"))
        contents = [(path / "contents.json").read_text() for path in (waited, meanwhile)]
        assert contents[0] == contents[1]  # every file of the same size and checksum


def test_a_checkpoint_that_cannot_be_written_meanwhile_is_told(
    make_module, make_trainer, make_data, tmp_path, monkeypatch
):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_io, "write_slices", full)
    trainer = make_trainer(6, [Checkpoints(2, asynchronous=True)])
    with pytest.raises(CheckpointNotWritten, match=r"step-000002 could not be written .No space left"):
        trainer.fit(make_module(), datamodule=make_data())
    assert trainer.global_step == 4
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("place", "name"), [(checkpoint_io, "write_slices"), (model_folder, "write_shards")])
def test_a_disk_that_fills_up_meanwhile_leaves_the_earlier_checkpoint(
    make_module, make_trainer, make_data, tmp_path, monkeypatch, place, name
):
    write = getattr(place, name)

    def fill(folder, *arguments):
        if "step-000004" in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, *arguments)

    monkeypatch.setattr(place, name, fill)
    trainer = make_trainer(8, [Checkpoints(2, asynchronous=True)])
    with pytest.raises(CheckpointNotWritten, match=r"step-000004 could not be written .*No space left.*make room"):
        trainer.fit(make_module(), datamodule=make_data())
    assert trainer.global_step == 6  # it went on to the next checkpoint
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["last", "step-000002"]
    assert find_damage(tmp_path / "checkpoints" / "last") is None
    monkeypatch.undo()
    make_trainer(8, [Checkpoints(2, asynchronous=True)]).fit(
        make_module(), datamodule=make_data(), ckpt_path=tmp_path / "checkpoints" / "last"
    )
    assert names(tmp_path) == ["step-000006", "step-000008"]


def test_a_run_that_fails_says_so_to_what_is_being_written(make_module, make_trainer, make_data, monkeypatch):
    def fail(*arguments):
        raise ConnectionError("the other process is gone")

    told, module = [], make_module()
    monkeypatch.setattr(CheckpointFolders, "run_failed", lambda self: told.append(True))
    module.on_train_batch_end = fail
    with pytest.raises(ConnectionError):
        make_trainer(2, [Checkpoints(1, asynchronous=True)]).fit(module, datamodule=make_data())
    assert told == [True]
