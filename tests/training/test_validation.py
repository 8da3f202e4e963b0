"""The figures of a validation are means over its samples, on any number of processes."""

import json

import pytest
import torch
import yaml

from icve.cli.main import main
from icve.flow import TimestepDensity, flow_loss, interpolate
from icve.training.objectives.in_context import VALIDATION_SIGMAS
from icve.training.randomness import generator
from icve.training.run.curriculum_record import Record
from tests.training.callbacks.test_previews import served_by_tensorboard
from tests.training.conftest import TINY_YAML, as_loader, cut, tiny_transformer
from tests.training.runs import run_in_turn, strategy

TIME_LIMIT = 200
LAW = TimestepDensity(shift=7.0)


def by_hand(module, batch, level):
    """Losses of a batch's samples at a noise level, one after the other."""
    losses = []
    for index, name in enumerate(batch["id"]):
        source, x0 = module.encode_videos(batch["source"][[index]], batch["target"][[index]])
        noise = torch.randn(x0.shape, generator=generator(0, "validation", 0, name, f"noise at {level}"))
        sigma = torch.tensor([level])
        text = module.text_encoder.encode([batch["instruction"][index]])
        with torch.no_grad():
            x_t = {"video": interpolate(x0, noise, sigma)}
            prediction = module.denoiser.denoise(x_t, sigma, text, {"source": source})["video"]
        losses.append(float(flow_loss(prediction, x0, noise, sigma)))
    return losses


def test_the_figures_are_means_over_the_samples_that_count(make_module, make_trainer, make_data):
    whole = make_data(batch_size=4).batch(-1)
    sets = (
        [whole],
        [cut(whole, 3), cut(whole, 2, 0, 1)],  # in other batches and another order
        [
            {**cut(whole, 0, 0, 1), "counted": [True, False, True]},
            cut(whole, 2, 3),
            {**cut(whole, 1), "counted": [False]},
        ],
    )
    # Neither the stage nor the seed of training matters.
    figures = [
        make_trainer(1).validate(
            make_module(stage=f"stage{n}", seed=n, transformer=tiny_transformer(), density=LAW),
            as_loader(batches),
            verbose=False,
        )[0]
        for n, batches in enumerate(sets)
    ]
    truth = {}
    for level in VALIDATION_SIGMAS:
        losses = by_hand(make_module(), whole, level)
        assert max(losses) > 1.02 * min(losses)
        truth[f"val/loss_sigma_{level}"] = sum(losses) / len(losses)
    shares = LAW.shares(VALIDATION_SIGMAS)
    assert shares[0] < 0.01 < 0.5 < shares[-1]
    truth |= {
        "val/loss_plain": sum(truth.values()) / len(truth),
        "val/loss": sum(share * loss for share, loss in zip(shares, truth.values(), strict=True)),
    }
    assert truth["val/loss"] != pytest.approx(truth["val/loss_plain"], rel=1e-3)
    for values in figures:
        assert values == pytest.approx(truth, rel=1e-5)


def test_the_weights_of_the_levels_follow_the_size(make_module, make_trainer, make_data):
    """With a shift by tokens, a clip's levels weigh as training draws them for clips of its size."""
    law = TimestepDensity(shift=4.0, shift_tokens=1, uniform_share=0.2)
    for frames, tokens in ((1, 1), (13, 4)):  # one token a latent frame
        batch = make_data(frames=frames).batch(-1)
        module = make_module(density=law)
        figures = make_trainer(1).validate(module, as_loader([batch]), verbose=False)[0]
        shares = TimestepDensity(shift=4.0 * tokens**0.5, uniform_share=0.2).shares(VALIDATION_SIGMAS)
        levels = [figures[f"val/loss_sigma_{level}"] for level in VALIDATION_SIGMAS]
        assert figures["val/loss"] == pytest.approx(
            sum(share * loss for share, loss in zip(shares, levels, strict=True)), rel=1e-5
        )


@pytest.fixture
def two_stages(tiny_manifest, tmp_path):
    """A curriculum whose stages hold out three pairs and one pair, and whose weights stay what they are."""
    config = yaml.safe_load(TINY_YAML.format(run="unused", manifest=tiny_manifest).replace("${seed_everything}", "5"))
    rows = tiny_manifest.read_text().splitlines()
    parts = {}
    for name, count in (("three", 3), ("one", 1)):
        held_out = tmp_path / f"{name}.jsonl"
        held_out.write_text("\n".join(rows[-count:]) + "\n")
        options = {**config["data"]["init_args"], "val_manifest": str(held_out), "root": str(tiny_manifest.parent)}
        parts[name] = {**config["data"], "init_args": options}
    config["data"] = {"class_path": "icve.data.curriculum_data.CurriculumDataModule", "init_args": {"stages": parts}}
    config["model"] |= {"stage": "curriculum", "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}}
    config["trainer"]["val_check_interval"] = 1
    del config["trainer"]["max_steps"]
    stages = [{"name": "three", "steps": 1}, {"name": "one", "steps": 3, "patience": 1}]
    checkpoints = {"every_n_steps": 1, "keep_last": 0, "monitor": "val/loss"}
    config["trainer"]["callbacks"] = [
        {"class_path": "icve.training.run.curriculum.CurriculumCallback", "init_args": {"stages": stages}},
        {"class_path": "icve.training.callbacks.ema.EMA"},
        {"class_path": "icve.training.callbacks.checkpoints.Checkpoints", "init_args": checkpoints},
        {"class_path": "icve.training.callbacks.previews.EditPreviews", "init_args": {"count": 3}},
    ]
    path = tmp_path / "two_stages.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(3 * TIME_LIMIT)
def test_two_processes_give_the_figures_of_one(two_stages, tmp_path):
    """Data parallel, and sharing every sample's tokens: batches of two, of one, and a process with no sample at all."""
    runs = {
        "alone": [],
        "data_parallel": ["--trainer.devices=2", "--trainer.strategy=ddp"],
        "sequence_parallel": strategy("DDPUlyssesStrategy", 2, 2),
    }
    commands = [
        ["fit", "-c", two_stages, "--trainer.default_root_dir", tmp_path / name, *options]
        for name, options in runs.items()
    ]
    assert main(list(map(str, commands[0]))) == 0
    run_in_turn(commands[1:], 2, tmp_path, seconds=TIME_LIMIT)

    alone, *others = ([event(entry) for entry in Record(tmp_path / name).entries()] for name in runs)
    # Patience is at its end when the figures of the second stage have not changed.
    assert [key for key, _ in alone] == [
        *(("start", "three", 0), ("interval", "three", 1), ("end", "three", 1)),
        *(("start", "one", 0), ("interval", "one", 1), ("end", "one", 1)),
    ]
    for entries in others:
        for (key, figures), (true_key, truth) in zip(entries, alone, strict=True):
            assert key == true_key
            assert len(truth) == 9
            assert figures == pytest.approx(truth, rel=1e-5), json.dumps(key)
    shown = [served_by_tensorboard(tmp_path / name / "three" / "tensorboard").keys() for name in runs]
    assert len(shown[0]) == 3
    assert shown[1] == shown[2] == shown[0]


def event(entry):
    return (entry["event"], entry["stage"], entry["step"]), entry["figures"]
