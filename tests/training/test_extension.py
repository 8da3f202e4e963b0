"""A new family, objective, transform and metric: plan, encode, fit, edit, measure, export; nothing else is touched."""

import json
import os
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import torch.distributed as dist
import yaml

from icve.cli.main import COMMANDS, MODULES, main
from icve.curation.stage import Workspace
from icve.data.media.video import read_frames
from icve.models import families
from icve.models.loading import load_transformer, weights_family
from icve.models.lora import LoRA, add_lora
from icve.models.sequence_parallel import sequence_parallel
from icve.training.checkpoints.starting_weights import take_weights
from tests import toy_family
from tests.measured import measured
from tests.toy_family import ToyTransformer
from tests.training.conftest import TINY_YAML, write_pairs
from tests.training.runs import steps


@pytest.fixture(autouse=True)
def toy():
    families.FAMILIES.append(toy_family.FAMILY)
    yield toy_family.FAMILY
    families.FAMILIES.remove(toy_family.FAMILY)


def toy_yaml(folder, run):
    values = yaml.safe_load(TINY_YAML.format(run=run, manifest=write_pairs(folder, 4, 5, 32)))
    values["model"]["transformer"] = {"class_path": "tests.toy_family.ToyTransformer"}
    values["model"]["objective"] = {"class_path": "tests.toy_family.NoisedSource", "init_args": {"amount": 0.2}}
    values["data"]["init_args"]["transforms"] = [{"class_path": "tests.toy_family.Undo", "init_args": {"share": 0.4}}]
    (folder / "toy.yaml").write_text(yaml.safe_dump(values))
    return folder / "toy.yaml"


def test_a_family_an_objective_a_transform_and_a_metric_go_through_every_command(tmp_path, capsys, make_tiny_weights):
    run, weights = tmp_path / "run", make_tiny_weights(tmp_path / "weights", seed=3, family="toy")
    config = toy_yaml(tmp_path, run)
    start = ["--model.start.pretrained", str(weights)]
    assert main(["plan", "-c", str(config), "--gpus", "1", "--gpu_memory", "8"]) == 0
    assert "Stage tiny" in capsys.readouterr().out
    assert main(["encode", "-c", str(config), "--output", str(tmp_path / "cache")]) == 0
    cached = [
        "--data.init_args.latents",
        str(tmp_path / "cache"),
        "--trainer.default_root_dir",
        str(tmp_path / "cached"),
    ]
    assert main(["fit", "-c", str(config), *start]) == main(["fit", "-c", str(config), *start, *cached]) == 0
    losses = [[line["loss"] for line in steps(folder)] for folder in (run, tmp_path / "cached")]
    assert len(losses[0]) == 4
    ids = [line["ids"] for line in steps(run)]
    plain = ["--data.init_args.transforms", "[]", "--trainer.default_root_dir", str(tmp_path / "plain")]
    assert main(["fit", "-c", str(config), *start, *plain]) == 0
    assert [line["ids"] for line in steps(tmp_path / "plain")] == ids
    assert [line["loss"] for line in steps(tmp_path / "plain")] != losses[0]  # the transform has its effect
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # the cache holds 16 bits

    edit = ["edit", "--model", str(run), "--input", str(tmp_path / "source0.mp4"), "--instruction", "make it red"]
    assert main([*edit, "--output", str(tmp_path / "out")]) == 0
    assert read_frames(next((tmp_path / "out").glob("*.mp4"))).shape == (5, 32, 32, 3)

    suite = tmp_path / "suite.yaml"
    suite.write_text("metrics: [{class_path: tests.toy_family.Reddened}]\n")
    assert main(["eval", "run", str(suite), "--results", str(tmp_path / "out" / "results.jsonl")]) == 0
    (row,) = parquet.read_table(tmp_path / "out" / "metrics.parquet").to_pylist()
    assert row["reddened"] == pytest.approx(reddened(tmp_path / "source0.mp4", tmp_path / "out" / "source0.mp4"))

    exported = tmp_path / "exported"
    assert main(["convert", "weights", "--input", str(run), "--output", str(exported)]) == 0
    trained, again = load_transformer(run), load_transformer(exported)
    assert isinstance(again, ToyTransformer)
    assert weights_family(exported) is toy_family.FAMILY
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert main(["convert", "editor", "--input", str(run), "--output", str(tmp_path / "editor")]) == 0
    assert main([*edit[:2], str(tmp_path / "editor"), *edit[3:], "--output", str(tmp_path / "again")]) == 0


def reddened(source, edited):
    return float((read_frames(edited)[..., 0].astype(float) - read_frames(source)[..., 0]).mean())


def test_licences_of_base_weights_follow_them(tmp_path, toy):
    from icve.models.loading import export_transformer

    export_transformer(ToyTransformer(), tmp_path / "weights")
    recorded = json.loads((tmp_path / "weights" / "base_weights.json").read_text())
    assert recorded == [{"name": "Toy weights", "link": "https://example.org/toy", "terms": "Toys for all."}]
    # What is known of a checkpoint is handed on: the demonstration's is made from nobody's weights.
    export_transformer(ToyTransformer(), tmp_path / "own", bases=[])
    assert main(["convert", "weights", "--input", str(tmp_path / "own"), "--output", str(tmp_path / "copy")]) == 0
    assert json.loads((tmp_path / "copy" / "base_weights.json").read_text()) == []


def test_new_parameters_keep_their_values_where_training_starts_from_a_base(tmp_path):
    base, later = ToyTransformer(), ToyTransformer(later=True)
    base.save_pretrained(tmp_path / "base")
    kept = later.extra.weight.clone()
    told = take_weights(later, tmp_path / "base")
    assert (
        told == f"{len(base.state_dict())} tensors are taken, 0 of them as further copies, 2 keep their initial values"
    )
    assert torch.equal(later.extra.weight, kept)
    assert torch.equal(later.patchify.weight, base.patchify.weight)
    with pytest.raises(ValueError, match="do not fit the configured transformer"):
        take_weights(ToyTransformer(num_layers=3, later=True), tmp_path / "base")


def test_adapters_change_what_the_family_says():
    transformer = ToyTransformer()
    add_lora(transformer, LoRA(rank=2))
    trained = {name.split(".lora_")[0] for name, p in transformer.named_parameters() if p.requires_grad}
    assert trained == {f"blocks.{block}.to_{part}" for block in (0, 1) for part in ("qkv", "out")}


def run_shared(rank: int, port: int, words: list[str]) -> None:
    """A command as a launcher starts it on one of two processes."""
    families.FAMILIES.append(toy_family.FAMILY)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    assert main(words) == 0


def two_processes(words: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_shared, args=(port, words), nprocs=2)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_processes_that_share_tokens_train_and_edit_the_same(tmp_path):
    config = toy_yaml(tmp_path, tmp_path / "alone")
    assert main(["fit", "-c", str(config)]) == 0
    strategy = "icve.training.distributed.strategies.DDPUlyssesStrategy"
    options = ["--trainer.strategy", strategy, "--trainer.strategy.init_args.sequence_parallel_size", "2"]
    options += ["--trainer.strategy.init_args.process_group_backend", "gloo", "--trainer.devices", "2"]
    two_processes(["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path / "shared"), *options])
    alone, shared = (steps(tmp_path / name) for name in ("alone", "shared"))
    assert [line["ids"] for line in alone] == [line["ids"] for line in shared]
    assert [line["loss"] for line in alone] == pytest.approx([line["loss"] for line in shared], rel=1e-4)
    ours, theirs = (load_transformer(tmp_path / name).state_dict() for name in ("alone", "shared"))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=2e-3, rtol=1e-2)

    edit = ["edit", "--model", str(tmp_path / "alone"), "--input", str(tmp_path / "source0.mp4")]
    edit += ["--instruction", "make it red", "--output"]
    assert main([*edit, str(tmp_path / "one")]) == 0
    two_processes([*edit, str(tmp_path / "two")])
    one, two = (read_frames(tmp_path / name / "source0.mp4").astype(int) for name in ("one", "two"))
    assert abs(one - two).max() <= 2  # of 255; sums in another order


def compare(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    transformer = ToyTransformer().double()
    video, sigma = torch.randn(2, 16, 3, 6, 10).double(), torch.rand(2).double()
    text = transformer.blank_text(5).to(dtype=torch.double).rows([0, 0])
    alone = transformer(video, video + 1, sigma, text)
    with sequence_parallel(dist.group.WORLD):
        torch.testing.assert_close(transformer(video, video + 1, sigma, text), alone, atol=1e-12, rtol=0)
    dist.destroy_process_group()


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_family_shares_tokens_through_the_layout(tmp_path):
    torch.multiprocessing.spawn(compare, args=(str(tmp_path / "store"),), nprocs=2)


@pytest.fixture(scope="module")
def documented():
    """What the code blocks of docs/extend.md define, each block run by itself."""
    text = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert len(block.splitlines()) <= 22
        exec(block, names)
    return names


def test_the_documented_family_and_layout_are_what_the_house_takes(documented):
    assert documented["FAMILY"].classes[0] == "my_package.transformer.MyTransformer"
    layout = documented["layout"]
    assert layout.counts == (1800, 1800, 64)
    assert layout.key_bias.isinf().sum() == 52
    assert documented["rotations"].shape == (3664, 64)


def test_the_documented_objective_trains(documented, make_module, make_trainer, make_data):
    module = make_module(objective=documented["UniformFlow"]())
    trainer = make_trainer(2, val_check_interval=2)
    trainer.fit(module, datamodule=make_data(validation=1))
    assert trainer.callback_metrics["val/loss"] > 0


def test_the_documented_stage_decides_on_rows(documented, tmp_path):
    rows = [{"key": "wide", "width": 64, "height": 32}, {"key": "tall", "width": 32, "height": 64}]
    wide, tall = documented["Landscape"](least=1.5)(rows, Workspace(tmp_path, tmp_path, tmp_path))
    assert wide["aspect"] == 2
    assert (tall.reason, tall.detail) == ("portrait", "its aspect is 0.50")


def test_the_documented_transform_mirrors_some_pairs(documented):
    sample = {
        "source": torch.arange(6).reshape(1, 1, 2, 3),
        "target": torch.zeros(1, 1, 2, 3),
        "instruction": "make it red",
    }
    draws = [documented["Mirrored"]()(sample, np.random.default_rng(seed))["source"] for seed in range(20)]
    mirrored = [torch.equal(source, sample["source"].flip(-1)) for source in draws]
    assert 0 < sum(mirrored) < 20
    assert all(
        torch.equal(source, sample["source"]) for source, is_so in zip(draws, mirrored, strict=True) if not is_so
    )


def test_the_documented_metric_measures(documented):
    clip = np.zeros((3, 2, 2, 3), np.uint8)
    clip[1] = 30
    assert measured(documented["Brightness"](), edited=clip) == {"brightness": float(clip.mean())}


def test_the_documented_command_is_found_and_runs(documented, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "count-rows", "rows of a manifest: icve count-rows data/clips.parquet")
    monkeypatch.setitem(MODULES, "count-rows", "my_package.count_rows")
    monkeypatch.setitem(sys.modules, "my_package.count_rows", SimpleNamespace(main=documented["main"]))
    manifest = write_pairs(tmp_path, 3, 5, 32)
    assert main(["count-rows", str(manifest)]) == 0
    assert capsys.readouterr().out == "3\n"
    assert main(["count-rows", str(tmp_path / "none.parquet")]) == 2
    assert main(["--help"]) == 0
    assert "count-rows" in capsys.readouterr().out
