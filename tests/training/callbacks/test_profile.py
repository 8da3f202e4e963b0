import gzip
import json

import pytest
import yaml

from icve.cli.main import main
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.profile import Profile


def attentions(path):
    names = [event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
    assert any(name.startswith("autograd::engine::evaluate_function") for name in names)
    return names.count("aten::scaled_dot_product_attention")


def test_the_command_records_the_steps_it_is_asked_for(tiny_yaml, tmp_path):
    assert main(["fit", "-c", str(tiny_yaml), "--profile", "2:1"]) == 0
    assert attentions(tmp_path / "run" / "profile" / "step-000002-rank-0.json.gz") >= 3  # of each block
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["profile"] == "2:1"
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())) == 1


def test_a_resumed_run_is_recorded_from_where_it_goes_on(make_module, make_trainer, make_data, tmp_path, caplog):
    folder, save = tmp_path / "profile", {"every_n_steps": 2, "keep_last": 0}

    def train(steps, profile, checkpoint=None):
        checkpoint = checkpoint and tmp_path / "checkpoints" / checkpoint
        make_trainer(steps, [Checkpoints(**save), profile], accumulate_grad_batches=2).fit(
            make_module(), datamodule=make_data(), ckpt_path=checkpoint
        )

    train(2, Profile(1, 1))
    train(6, Profile(1, 2), "step-000002")
    assert attentions(folder / "step-000003-rank-0.json.gz") == 2 * attentions(folder / "step-000001-rank-0.json.gz")
    # Ended early, it writes what there is, or says that there is nothing.
    train(8, Profile(1, 9), "step-000006")
    assert attentions(folder / "step-000007-rank-0.json.gz") == attentions(folder / "step-000001-rank-0.json.gz")
    train(8, Profile(5, 1), "step-000006")
    assert "No profile was written: training ended before its step 11" in caplog.text
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("text", ["10", "a:b", "0:5", "5:0", "10:5:2"])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(ValueError, match=r"START:STEPS|start >= 1 and steps >= 1"):
        Profile.parse(text)
