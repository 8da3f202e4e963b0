"""Which folder a path means to whoever edits with it, converts it or starts from it."""

import pytest

from icve.editing.editors import resolve_model_folder
from icve.models.loading import load_transformer
from icve.runtime.folder_contents import describe, write_contents
from tests.tiny import tiny_editor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two checkpoints, of which the last is damaged."""
    folder = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        checkpoint = folder / "checkpoints" / f"step-{step:06d}"
        editor = tiny_editor()
        editor.transformer.proj_out.bias.data.fill_(step)
        editor.save_pretrained(checkpoint)
        (checkpoint / "trainer.ckpt").touch()
        write_contents(checkpoint, describe(checkpoint, [file for file in checkpoint.rglob("*") if file.is_file()]))
    (folder / "checkpoints" / "last").symlink_to("step-000002")
    (weights,) = (folder / "checkpoints" / "step-000002" / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize("name", [".", "checkpoints/last"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, name, caplog):
    assert resolve_model_folder(run / name) == run / "checkpoints" / "step-000001"
    assert "is taken instead" in caplog.text
    assert load_transformer(run / name).proj_out.bias.unique().item() == 1


def test_a_checkpoint_that_is_named_itself_is_taken(run):
    assert resolve_model_folder(run / "checkpoints" / "step-000001") == run / "checkpoints" / "step-000001"
    assert resolve_model_folder(run / "checkpoints" / "step-000002") == run / "checkpoints" / "step-000002"
