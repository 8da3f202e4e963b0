"""Runs on a mixture of data sets: losses by their weights, resumed exactly, videos beside pictures."""

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
        config["trainer"] |= {"max_steps": steps, "log_every_n_steps": 2}  # one of each bucket
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


def test_a_mixture_is_encoded_with_its_prefixes_and_trains_from_the_cache(
    fit, tiny_manifest, tiny_pictures, tmp_path, capsys
):
    from_videos = steps(fit("run", steps=4))
    cache = tmp_path / "cache"
    words = ["encode", "-c", f"{tmp_path / 'run'}.yaml", "--output", str(cache), "--dtype", "float32"]
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["encoded"] == len(tiny_manifest.read_text().splitlines()) + 4
    assert steps(fit("cached", "--data.init_args.latents", cache, steps=4)) == from_videos
    entries = [{"manifest": str(tiny_manifest)}, {"manifest": str(tiny_pictures), "prefix": "Please, "}]
    changed = ["--data.init_args.mixture", json.dumps(entries)]
    capsys.readouterr()
    words = ["fit", "-c", f"{tmp_path / 'cached'}.yaml", "--data.init_args.latents", str(cache), *changed]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path / "other")]) == 2
    assert (
        "picture0: it was encoded with instruction make it blue, asked for is Please, make" in capsys.readouterr().err
    )


def test_every_data_set_of_a_mixture_is_inspected(fit, tmp_path, capsys, tiny_manifest):
    run = fit("run", steps=1)
    capsys.readouterr()
    assert main(["inspect-data", "-c", f"{run}.yaml", "--output", str(tmp_path / "seen")]) == 0
    shown = capsys.readouterr().out
    assert "videos, with weight 0.5: " in shown
    assert "pictures, with weight 0.5: " in shown
    assert "     4 rows in 32x32x1" in shown
    assert sorted(path.name for path in (tmp_path / "seen" / "pictures").iterdir()) == ["pairs.html", "pairs.png"]
    assert main(["inspect-data", str(tiny_manifest), "-c", f"{run}.yaml"]) == 0
    assert "pictures" not in capsys.readouterr().out
    assert main(["inspect-data", "--buckets", "32x32x5"]) == 2
    assert "There is nothing to inspect" in capsys.readouterr().err
