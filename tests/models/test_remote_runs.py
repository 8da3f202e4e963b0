"""Which checkpoint a URL means; the store is memory."""

import json

import pytest
import torch

from icve.models.loading import load_transformer
from icve.models.remote_runs import on_disk
from icve.models.run_folders import inside_run, names_itself, resolve_checkpoint
from icve.models.run_names import TRAINER_FILE
from icve.runtime.folder_contents import CONTENTS, describe, find_damage, write_contents
from icve.runtime.storage.fetched import origin_of
from icve.runtime.storage.remote_path import as_path
from icve.training.checkpoints.stage_record import read_stage
from tests.s3_server import upload
from tests.training.checkpoints.test_checkpoint_io import save


@pytest.fixture
def store(tmp_path, s3):
    """URL of an empty folder."""
    return as_path(f"memory://{tmp_path.name}/runs")


@pytest.fixture
def run(tmp_path, store):
    """A run behind a URL with checkpoints of steps 5, 7 and 9; its last upload was killed. Step 5 is exported."""
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (5, 7, 9):
        folder = save(checkpoints / f"step-00000{step}")
        if step == 5:
            (folder / "transformer" / "weights.safetensors").write_bytes(b"weights")
            write_contents(
                folder, describe(folder, [f for f in folder.rglob("*") if f.is_file() and f.name != CONTENTS])
            )
    (checkpoints / "best").write_text("step-000005")
    url = as_path(upload(tmp_path / "run", f"{store}/a"))
    (url / "checkpoints" / "step-000009" / CONTENTS).unlink()
    return url


def test_every_way_to_name_a_checkpoint(run):
    five, seven = (run / "checkpoints" / f"step-00000{step}" for step in (5, 7))
    for name in (run, run / "checkpoints", f"{run}/checkpoints/last", str(seven)):
        found = resolve_checkpoint(name)
        assert origin_of(found) == seven
        assert find_damage(found) is None
        assert read_stage(found)["step"] == 7
    for name in (five, run / "checkpoints" / "best"):
        assert origin_of(resolve_checkpoint(name)) == five
        assert names_itself(name)
    assert not any(map(names_itself, (run, run / "checkpoints" / "last")))


def test_a_half_uploaded_checkpoint_is_never_taken(run):
    with pytest.raises(ValueError, match=r"step-000009 is not whole, as its upload has not ended; name an earlier one"):
        resolve_checkpoint(run / "checkpoints" / "step-000009")
    for step in (5, 7):
        (run / "checkpoints" / f"step-00000{step}" / CONTENTS).unlink()
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        resolve_checkpoint(run)


@pytest.mark.parametrize("how", ["truncated", "missing", "other bytes"])
def test_a_damaged_one_is_passed_over_where_the_newest_is_meant(run, how, caplog):
    seven = run / "checkpoints" / "step-000007"
    file = seven / TRAINER_FILE
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        with file.written_whole() as new:
            new.write_bytes(data[:-1] if how == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    assert origin_of(resolve_checkpoint(run)) == run / "checkpoints" / "step-000005"
    assert f"{file} " in caplog.text
    assert "step-000005 is taken instead" in caplog.text
    with pytest.raises(ValueError, match=r"step-000007 is damaged: .*; name an earlier one"):
        resolve_checkpoint(seven)


def test_an_edit_takes_the_newest_exported_one_without_its_training_state(run, caplog):
    found = inside_run(run)
    assert origin_of(found) == run / "checkpoints" / "step-000005"
    assert find_damage(found) is None
    assert "weights.safetensors" in [file.name for file in (found / "transformer").iterdir()]
    assert not (found / "state").exists()
    assert "not exported and takes longer to load" in caplog.text
    assert (inside_run(run, newest=True) / "state").is_dir()


def test_a_copy_that_was_spoilt_on_the_local_disk_is_found(run):
    file = resolve_checkpoint(run) / TRAINER_FILE
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(ValueError, match="is damaged"):
        resolve_checkpoint(run)


def test_several_runs_and_nothing_are_told(run, store):
    with pytest.raises(ValueError, match=f"holds several runs: name one of them, as {run}"):
        on_disk(store)
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .*/b; name the URL of a run"):
        on_disk(store / "b")


def test_weights_are_read_from_folders_and_files(tiny_model, store):
    url, truth = upload(tiny_model, f"{store}/editor"), load_transformer(tiny_model).state_dict()
    for place in (url, f"{url}/transformer", f"{url}/transformer/diffusion_pytorch_model.safetensors"):
        read = load_transformer(place).state_dict()
        assert all(torch.equal(value, truth[name]) for name, value in read.items())


def test_local_paths_and_file_urls_stay_where_they_are(tmp_path):
    assert on_disk(tmp_path) == tmp_path
    assert on_disk(f"file://{tmp_path}") == tmp_path
    folder = save(tmp_path / "checkpoints" / "step-000007")
    assert resolve_checkpoint(f"file://{tmp_path}") == folder
    assert json.loads((folder / CONTENTS).read_text())
