"""Runs with transforms, as docs/data.md configures them."""

import re
import sys

import numpy as np
import pytest
import torch
import yaml

from icve.cli.main import main
from tests.training.runs import steps


@pytest.fixture
def shown(repository):
    """Blocks of the documents' section on transforms, by their language."""
    text = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.split("\n## Transforms\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```", section, flags=re.M | re.S))


@pytest.fixture
def fit(tiny_yaml, tmp_path):
    """Train with a second configuration; returns the losses and the samples of every step."""

    def fit(transforms, run="run", max_steps=4, *arguments):
        (tmp_path / "transforms.yaml").write_text(transforms)
        command = ["fit", "-c", str(tiny_yaml), "-c", str(tmp_path / "transforms.yaml")]
        options = ["--trainer.default_root_dir", tmp_path / run, "--trainer.max_steps", max_steps, *arguments]
        assert main([*command, *map(str, options)]) == 0
        return [(line["loss"], line["ids"]) for line in steps(tmp_path / run)]

    fit.folder = tmp_path
    return fit


def test_the_example_trains(fit, shown):
    losses = fit(shown["yaml"], max_steps=2)
    assert len(losses) == 2
    listed = yaml.safe_load((fit.folder / "run" / "config.yaml").read_text())["data"]["init_args"]["transforms"]
    assert listed == yaml.safe_load(shown["yaml"])["data"]["init_args"]["transforms"]


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_samples(fit, shown):
    often = shown["yaml"].replace("share: 0.05", "share: 0.5")
    straight = fit(often, "straight")
    plain = fit("data: {init_args: {transforms: null}}", "plain")
    assert [ids for _, ids in plain] == [ids for _, ids in straight]
    assert plain != straight
    fit(often, "resumed", 2)
    assert fit(often, "resumed", 4, "--ckpt_path", fit.folder / "resumed") == straight


def test_a_class_of_ones_own_trains(fit, shown, monkeypatch, tmp_path):
    (tmp_path / "own_transforms.py").write_text(shown["python"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_transforms", raising=False)
    transforms = [{"class_path": "own_transforms.BlackFrames", "init_args": {"share": 0.5}}]
    assert len(fit(yaml.safe_dump({"data": {"init_args": {"transforms": transforms}}}), max_steps=2)) == 2
    given = torch.full((3, 41, 8, 8), 9, dtype=torch.uint8)
    source = sys.modules["own_transforms"].BlackFrames(0.5)({"source": given}, np.random.default_rng(0))["source"]
    black = (source == 0).all(dim=(0, 2, 3))
    assert not black[0]
    assert 10 < int(black.sum()) < 30
    assert (source[:, ~black] == 9).all()


@pytest.mark.parametrize("name", ["icve.data.transforms.Nothing", "icve.data.buckets.Bucket"])
def test_what_is_no_transform_is_refused(tiny_yaml, tmp_path, capsys, name):
    (tmp_path / "transforms.yaml").write_text(f"data: {{init_args: {{transforms: [{{class_path: {name}}}]}}}}")
    assert main(["fit", "-c", str(tiny_yaml), "-c", str(tmp_path / "transforms.yaml")]) == 2
    assert name in capsys.readouterr().err
