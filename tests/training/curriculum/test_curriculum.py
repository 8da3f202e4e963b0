"""One run of a curriculum equals a run of each of its stages by hand, bit for bit."""

import gc
import os
import shutil
import weakref

import pytest
import torch
import yaml

from icve.cli.main import main
from icve.evaluation.curves import read_curves
from icve.training.module import InContextEditingModule
from icve.training.run import stage_runs
from icve.training.run.curriculum import CurriculumCallback, Stage, stopped_improving
from icve.training.run.curriculum_record import Record
from icve.training.run.stage_runs import merged
from tests.training.curriculum.curricula import (
    EMA,
    NAMES,
    STEPS,
    TIME_LIMIT,
    ULYSSES,
    assert_equal_runs,
    cut,
    events,
    fit,
    stage_data,
    stage_settings,
    state,
)
from tests.training.runs import finish, steps


def by_hand(config, folder):
    """Three runs of `icve fit` without a curriculum, each from the checkpoint of the one before."""
    previous = []
    for name in NAMES:
        own = merged(yaml.safe_load(config), stage_settings(name))
        own["model"]["stage"], own["trainer"]["max_steps"] = name, STEPS[name]
        own["data"] = stage_data(config, name)
        path = folder / f"{name}.yaml"
        folder.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(own))
        assert fit(path, folder / name, *previous) == 0
        previous = ["--ckpt_path", folder / name]


def test_one_run_equals_three_and_tells_how_it_went(whole, config, tmp_path):
    (_, run), truth = whole, tmp_path / "truth"
    by_hand(config, truth)
    assert_equal_runs(run, truth)
    losses = {name: [line["loss"] for line in steps(run / name)] for name in NAMES}
    assert [len(losses[name]) for name in NAMES] == [4, 6, 6]  # the last accumulates two batches a step
    assert len({*losses["clips"], *losses["more_clips"]}) == 10

    assert events(run) == [
        ("start", "clips", 0, 0),
        ("interval", "clips", 2, 2),
        ("interval", "clips", 4, 4),
        ("end", "clips", 4, 4),
        ("start", "more_clips", 0, 4),
        ("interval", "more_clips", 2, 6),
        ("interval", "more_clips", 4, 8),
        ("interval", "more_clips", 6, 10),
        ("end", "more_clips", 6, 10),
        ("start", "edits", 0, 10),
        ("interval", "edits", 1, 11),
        ("interval", "edits", 2, 12),
        ("interval", "edits", 3, 13),
        ("end", "edits", 3, 13),
    ]
    for entry in Record(run).entries():
        assert {f"val/loss_sigma_{sigma}" for sigma in (0.1, 0.5, 0.9)} < set(entry["figures"])
    # The averaged weights of a stage are what the next one starts from, on the same held-out pairs.
    figures = {(e["event"], e["stage"]): e["figures"]["val/loss"] for e in Record(run).entries()}
    assert read_curves(truth / "clips")["val/loss"][-1][1] == pytest.approx(figures["end", "clips"])
    assert figures["end", "clips"] == figures["start", "more_clips"]  # pairs of one length are cut alike as clips

    curves = read_curves(run)
    assert [step for step, _ in curves["train/loss"]] == list(range(13))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["stage"] == "curriculum"
    own = yaml.safe_load((run / "edits" / "config.yaml").read_text())
    assert (
        own["model"]["stage"],
        own["model"]["objective"]["init_args"]["edit_weight"],
        own["trainer"]["max_steps"],
    ) == ("edits", 3.0, 3)
    assert [c["init_args"]["decay"] for c in own["trainer"]["callbacks"] if c["class_path"] == EMA] == [0.5]


@pytest.mark.slow
def test_a_stage_ends_when_it_stops_improving(curriculum, tmp_path):
    still = {"settings": {"model": {"optimizer": {"init_args": {"lr": 0.0}}}}}
    path = curriculum(more_clips={"patience": 2, "steps": 50, **still})
    run = tmp_path / "run"
    assert fit(path, run) == 0
    ends = [event for event in events(run) if event[0] == "end"]
    assert ends == [("end", "clips", 4, 4), ("end", "more_clips", 4, 8), ("end", "edits", 3, 11)]
    assert os.readlink(run / "more_clips" / "checkpoints" / "last") == "step-000004"

    # Killed after the last checkpoint, before the validation that ends the stage.
    again = tmp_path / "again"
    shutil.copytree(run, again, symlinks=True)
    cut(again, 6, ["edits"])
    assert fit(path, again, "--ckpt_path", again) == 0
    assert events(again) == events(run)
    assert_equal_runs(again, run)


def test_patience_needs_a_figure_that_is_there(curriculum, config, tmp_path, capsys):
    blind = {"clips": stage_data(config, "clips", val_manifest=None)}
    assert fit(curriculum(blind, clips={"patience": 1}), tmp_path / "blind") == 2
    assert "Stage 'clips' has patience but no held-out data" in capsys.readouterr().err
    path = curriculum(clips={"patience": 1, "monitor": "val/lost"})
    assert fit(path, tmp_path / "run") == 2
    assert "cannot monitor 'val/lost': it is not among the figures val/loss" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stages_model_is_gone_before_the_next_ones_comes(curriculum, tmp_path, monkeypatch):
    train, left = stage_runs._run_to_its_end, []

    def alive():
        return [thing for thing in gc.get_objects() if type(thing) is InContextEditingModule]

    def look_and_train(*arguments):
        left.append(sum(module not in before for module in alive()))
        return train(*arguments)

    before = weakref.WeakSet(alive())  # of other tests
    monkeypatch.setattr(stage_runs, "_run_to_its_end", look_and_train)
    assert fit(curriculum(), tmp_path / "run") == 0
    assert left == [0, 0, 0]


@pytest.mark.slow
def test_without_held_out_data_the_switches_are_still_on_record(curriculum, config, tmp_path):
    parts = {name: stage_data(config, name, val_manifest=None) for name in NAMES}
    assert fit(curriculum(parts), tmp_path / "run") == 0
    entries = Record(tmp_path / "run").entries()
    assert [(e["event"], e["stage"]) for e in entries] == [(e, name) for name in NAMES for e in ("start", "end")]
    assert all(entry["figures"] == {} for entry in entries)


def test_a_stage_of_an_earlier_run_is_validated_with_its_own_configuration(whole, capsys):
    _, run = whole
    assert main(["validate", "-c", str(run / "edits" / "config.yaml"), "--ckpt_path", str(run / "edits")]) == 0
    assert "val/loss_sigma_0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("course", "ends"),
    [
        ([], False),
        ([1.0, 2.0], False),
        ([1.0, 2.0, 1.0], True),
        ([3.0, 2.0, 2.5, 1.0, 1.5], False),
        ([1.0, 0.95, 0.94], True),
        ([1.0, float("nan"), float("nan")], True),
    ],
)
def test_patience_counts_figures_that_are_no_better(course, ends):
    assert stopped_improving(course, patience=2, min_delta=0.1) == ends


def test_stages_are_checked():
    for wrong in ({"name": ""}, {"name": "a/b"}, {"steps": 0}, {"patience": 0}, {"min_delta": -1.0}):
        with pytest.raises(ValueError, match=r"[Ss]tage"):
            Stage(**{"name": "a", "steps": 1, **wrong})
    for stages in ([], [Stage("a", 1), Stage("a", 2)]):
        with pytest.raises(ValueError, match="different names"):
            CurriculumCallback(stages)


def test_settings_go_into_the_configuration():
    base = {"a": {"b": 1, "c": [1, 2]}, "x": {"class_path": "X", "init_args": {"p": 1, "q": 2}}, "kept": None}
    change = {"a": {"c": [3]}, "x": {"init_args": {"q": 3}}}
    assert merged(base, change) == {
        "a": {"b": 1, "c": [3]},
        "x": {"class_path": "X", "init_args": {"p": 1, "q": 3}},
        "kept": None,
    }
    other = {"class_path": "Y", "init_args": {"r": 1}}
    assert merged(base, {"x": other})["x"] == other
    classes = [{"class_path": "X", "init_args": {"p": 1}}, {"class_path": "Z"}]
    changed = merged(classes, [{"class_path": "X", "init_args": {"p": 2}}, other])
    assert changed == [{"class_path": "X", "init_args": {"p": 2}}, {"class_path": "Z"}, other]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(2 * TIME_LIMIT)
def test_two_processes_switch_together(started, whole, curriculum, config, tmp_path):
    # Two processes share the tokens of the first stage's samples and of the last one's.
    count = [{"class_path": "tests.training.curriculum.told.GroupCount"}]
    single = merged(
        stage_settings("more_clips"), {"trainer": {"strategy": {"init_args": {"sequence_parallel_size": 1}}}}
    )
    path, run = curriculum(more_clips={"settings": single}), tmp_path / "two"
    own = yaml.safe_load(path.read_text())
    own["trainer"]["strategy"] = {"class_path": ULYSSES, "init_args": {"sequence_parallel_size": 2}}
    own["trainer"]["callbacks"] += count
    path.write_text(yaml.safe_dump(own))
    finish(started(path, run, "--trainer.devices", 2), TIME_LIMIT)
    groups = [int((run / name / "groups").read_text()) for name in NAMES]
    assert groups == [groups[1] + 1, groups[1], groups[1] + 1]  # those of a stage go with it
    _, alone = whole
    assert events(run) == events(alone)
    before, after = (state(alone, name) for name in ("clips", "more_clips"))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) > 0.01
    for name in ("clips", "more_clips"):
        together, by_one = state(run, name), state(alone, name)
        for key, value in by_one.items():  # sums in another order, through an optimizer that computes in bfloat16
            assert torch.allclose(together[key], value, atol=0.003), (name, key)


@pytest.mark.timeout(TIME_LIMIT)
def test_a_stage_trains_on_a_mixture_and_resumes_it(curriculum, config, tmp_path, tiny_manifest):
    data = stage_data(config, "edits", mixture=[{"manifest": str(tiny_manifest), "name": name} for name in "ab"])
    del data["init_args"]["manifest"]
    path, run = curriculum({"edits": data}), tmp_path / "run"
    assert fit(path, run) == 0
    truth = steps(run / "edits")
    saved = {folder.name: folder for folder in (run / "edits" / "checkpoints").iterdir() if not folder.is_symlink()}
    state = torch.load(run / "edits" / "checkpoints" / "last" / "trainer.ckpt", weights_only=True)
    kept = state["CurriculumDataModule"]["mixture"]
    assert (kept["step"], kept["drawn"]) == (3, {"a": {"32x32x5": 3}, "b": {"32x32x5": 3}})
    assert len(saved) > 1
    # As if it had been killed after its second step.
    last = (run / "edits" / "checkpoints" / "last").resolve()
    shutil.rmtree(last)
    cut(run, len(Record(run).entries()) - 1, [])
    assert fit(path, run, "--ckpt_path", run) == 0
    assert steps(run / "edits") == truth
