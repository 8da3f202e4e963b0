import json

import pytest

from icve.cli.demo.resumable import CannotRun, ResumableTasks, digest


@pytest.fixture
def run(tmp_path):
    """Runs a stage as a new process would and tells whether its work was done."""

    def run(inputs, work=None, name="make"):
        done = []

        def default(folder):
            folder.mkdir(exist_ok=True)
            (folder / "made").touch()
            done.append(name)

        ResumableTasks(tmp_path).run(name, "made things", tmp_path / "things", inputs, work or default)
        return bool(done)

    return run


def test_a_finished_stage_is_kept_until_its_inputs_change_or_its_folder_goes(run, tmp_path):
    assert run({"count": 1})
    assert not run({"count": 1})
    (tmp_path / "things" / "old").touch()
    assert run({"count": 2})
    assert not (tmp_path / "things" / "old").exists()
    (tmp_path / "things" / "made").unlink()
    (tmp_path / "things").rmdir()
    assert run({"count": 2})


def test_an_interrupted_stage_goes_on_in_its_folder_and_its_time_adds_up(run, tmp_path):
    def interrupted(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({}, interrupted)
    file = tmp_path / "stages.json"
    states = json.loads(file.read_text())
    assert not states["make"]["finished"]
    states["make"]["seconds"] = 100.0
    file.write_text(json.dumps(states))
    assert run({})
    assert (tmp_path / "things" / "half").exists()
    assert ResumableTasks(tmp_path).states["make"]["seconds"] >= 100


def test_a_folder_no_stage_made_is_left_alone(run, tmp_path):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "precious").touch()
    with pytest.raises(CannotRun, match="another --output"):
        run({})
    assert (tmp_path / "things" / "precious").exists()


def test_digest_tells_contents_apart(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
