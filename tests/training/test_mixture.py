"""Runs on a mixture of data sets: losses by their weights, resumed exactly, with videos and pictures beside each other."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from icve.cli.main import main
from icve.models.run_folders import saved_checkpoints
from tests.training.callbacks.test_monitor import read_curves
from tests.training.conftest import TINY_YAML, cut
from tests.training.runs import steps


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory):
    """Four edits of pictures of 32 pixels, and their manifest."""
    folder, rng, lines = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1), []
    for number in range(4):
        row = {"id": f"picture{number}", "instruction": "make it blue"}
        for role in ("source", "target"):
            blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(blocks).save(folder / f"{role}{number}.png")
            row[f"{role}_path"] = f"{role}{number}.png"
        lines.append(json.dumps(row))
    (folder / "pictures.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pictures.jsonl"


@pytest.fixture
def fit(tmp_path, tiny_manifest, tiny_pictures):
    def fit(run, *arguments, weights=(0.5, 0.5), steps=6, **changes):
        config = yaml.safe_load(TINY_YAML.format(run=tmp_path / run, manifest=tiny_manifest))
        del config["data"]["init_args"]["manifest"]
        entries = [{"manifest": str(tiny_manifest), "name": "videos"}, {"manifest": str(tiny_pictures)}]
        mixture = [entry | {"weight": weight} for entry, weight in zip(entries, weights, strict=True)]
        config["data"]["init_args"] |= {"mixture": mixture, "buckets": [[32, 32, 5], [32, 32, 1]], **changes}
        config["trainer"]["max_steps"] = steps
        file = tmp_path / f"{run}.yaml"
        file.write_text(yaml.safe_dump(config))
        assert main(["fit", "-c", str(file), *map(str, arguments)]) == 0
        return tmp_path / run

    return fit


def checkpoints(run):
    return {folder.name: folder for folder in saved_checkpoints(run / "checkpoints")}


def test_a_mixture_of_videos_and_pictures_trains_and_resumes_exactly(fit, tmp_path):
    whole = steps(fit("whole"))
    kinds = [{name.rstrip("0123456789") for name in line["ids"]} for line in whole]
    assert Counter(map(frozenset, kinds)) == {frozenset({"pair"}): 3, frozenset({"picture"}): 3}
    curves = read_curves(tmp_path / "whole")
    for name, kind in (("videos", {"pair"}), ("pictures", {"picture"})):
        expected = [line["loss"] for line, of in zip(whole, kinds, strict=True) if of == kind]
        assert [value for _, value in curves[f"train/loss_of_{name}"]] == pytest.approx(expected)
    assert {"train/loss_32x32x1", "train/loss_32x32x5"} <= curves.keys()
    fit("parts", steps=4)
    parts = fit("parts", "--ckpt_path", tmp_path / "parts")
    assert steps(parts) == whole


def test_weights_may_change_when_a_run_is_resumed(fit, tmp_path, caplog):
    fit("run", steps=4)
    run = fit("run", "--ckpt_path", tmp_path / "run", weights=(1.0, 0.0), steps=8)
    assert "The mixture changes at step 4, from weights videos 0.5, pictures 0.5 to videos 1, pictures 0" in caplog.text
    assert all(name.startswith("pair") for line in steps(run)[4:] for name in line["ids"])


def test_a_mixture_is_given_on_the_command_line(fit, tiny_manifest, capsys):
    twice = json.dumps([{"manifest": str(tiny_manifest), "name": name, "loss_weight": 0.5} for name in "ab"])
    run = fit("run", "--data.init_args.mixture", twice, steps=2)
    assert len(steps(run)) == 2
    assert main(["fit", "-c", f"{run}.yaml", "--data.init_args.mixture[0].weight", "x"]) == 2
    capsys.readouterr()
    missing = json.dumps([{"manifest": "nowhere.jsonl"}])
    assert main(["fit", "-c", f"{run}.yaml", "--data.init_args.mixture", missing]) == 2
    assert "data.init_args.mixture[0].manifest is nowhere.jsonl, which does not exist" in capsys.readouterr().err


def test_the_gradient_is_that_of_the_weighted_mean_however_a_step_is_split(make_module, make_data, make_trainer):
    module, batch = make_module(instruction_dropout=0.0), make_data(batch_size=4).batch(0)
    trainer = make_trainer(1)
    trainer.strategy.connect(module)
    module.trainer = trainer

    def gradient(parts):
        module.zero_grad()
        module._drawing_step = -1
        for samples in parts:
            own = cut(batch | {"data_set": list("aabb"), "loss_weight": [1.0, 1.0, 0.5, 2.0]}, *samples)
            own |= {"weight": len(samples) * len(parts) / 4, "step_samples": 4}
            outputs = module.training_step(own, 0)
            (outputs["loss"] / len(parts)).backward()
        return outputs, torch.cat([p.grad.flatten() for p in module.transformer.parameters() if p.grad is not None])

    outputs, whole = gradient([range(4)])
    each = outputs["per_sample"]
    assert outputs["loss"].item() == pytest.approx(float((each * torch.tensor([1, 1, 0.5, 2])).sum() / 4), rel=1e-6)
    for parts in ([range(2), range(2, 4)], [range(1), range(1, 4)]):
        assert torch.allclose(gradient(parts)[1], whole, rtol=1e-4, atol=1e-7)
