"""One run of a curriculum equals a run of each of its stages by hand, bit for bit, uninterrupted or not."""

import gc
import json
import logging
import os
import shutil
import signal
import time
import weakref

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CUDAAccelerator
from safetensors.torch import load

from icve.cli import main
from icve.evaluation.curves import read_curves
from icve.training import stage_runs
from icve.training.curriculum import CurriculumCallback, Stage, stopped_improving
from icve.training.curriculum_record import Record
from icve.training.module import InContextEditingModule
from icve.training.stage_checks import count_processes
from icve.training.stage_runs import merged
from tests.training.conftest import TINY_YAML, finish

NAMES = ("clips", "more_clips", "edits")
STEPS = {"clips": 4, "more_clips": 6, "edits": 3}
EMA = "icve.training.ema.EMA"
ULYSSES = "icve.training.strategies.DDPUlyssesStrategy"
TIME_LIMIT = 240


def stage_settings(name):
    """What the stages of the tests set otherwise, as parts of the tiny configuration."""
    return {
        "clips": {},
        "more_clips": {"model": {"optimizer": {"init_args": {"lr": 0.003}}, "warmup_steps": 2, "schedule": "cosine"}},
        "edits": {
            "model": {"edit_weight": 3.0},
            "trainer": {
                "accumulate_grad_batches": 2,
                "callbacks": [{"class_path": EMA, "init_args": {"decay": 0.5, "warmup": False}}],
            },
        },
    }[name]


@pytest.fixture(scope="module")
def config(tiny_manifest):
    """The tiny configuration as YAML, validating every two batches."""
    text = TINY_YAML.format(run="unused", manifest=tiny_manifest).replace("${seed_everything}", "5")
    return text.replace("val_check_interval: 4", "val_check_interval: 2")


def stage_data(config, name, **options):
    data = yaml.safe_load(config)["data"]
    data["init_args"] |= {"batch_size": 1 if name == "edits" else 2, **options}
    kind = "icve.data.edits.PairedEditsDataModule" if name == "edits" else "icve.data.clips.UnpairedClipsDataModule"
    return {**data, "class_path": kind}


@pytest.fixture(scope="module")
def curriculum(config, tmp_path_factory):
    """Write the configuration of a curriculum; options are those of single stages: more_clips={"patience": 2}."""

    def write(data=None, **options):
        stages = [
            {"name": name, "steps": STEPS[name], "settings": stage_settings(name), **options.get(name, {})}
            for name in NAMES
        ]
        own = yaml.safe_load(config)
        own["model"]["stage"] = "curriculum"
        del own["trainer"]["max_steps"]
        callback = {"class_path": "icve.training.curriculum.CurriculumCallback", "init_args": {"stages": stages}}
        own["trainer"]["callbacks"].insert(0, callback)
        parts = {name: stage_data(config, name) for name in NAMES} | (data or {})
        own["data"] = {"class_path": "icve.data.curriculum.CurriculumDataModule", "init_args": {"stages": parts}}
        path = tmp_path_factory.mktemp("curriculum") / "curriculum.yaml"
        path.write_text(yaml.safe_dump(own))
        return path

    return write


@pytest.fixture(scope="module")
def whole(curriculum, tmp_path_factory):
    """An uninterrupted run and its configuration."""
    path, run = curriculum(), tmp_path_factory.mktemp("whole") / "run"
    assert fit(path, run) == 0
    return path, run


def fit(path, run, *arguments):
    return main(["fit", "-c", str(path), "--trainer.default_root_dir", str(run), *map(str, arguments)])


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


def steps(run, name):
    return [json.loads(line) for line in (run / name / "steps.jsonl").read_text().splitlines()]


def weights(run, name):
    folder = run / name / "checkpoints" / "last" / "transformer"
    return (folder / "diffusion_pytorch_model.safetensors").read_bytes()


def assert_equal_runs(run, truth, names=NAMES):
    for name in names:
        assert steps(run, name) == steps(truth, name), name
        assert weights(run, name) == weights(truth, name), name


def events(run):
    return [(e["event"], e["stage"], e["step"], e["run_step"]) for e in Record(run).entries()]


def test_one_run_equals_three_and_tells_how_it_went(whole, config, tmp_path):
    (_, run), truth = whole, tmp_path / "truth"
    by_hand(config, truth)
    assert_equal_runs(run, truth)
    losses = {name: [line["loss"] for line in steps(run, name)] for name in NAMES}
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
    assert (own["model"]["stage"], own["model"]["edit_weight"], own["trainer"]["max_steps"]) == ("edits", 3.0, 3)
    assert [c["init_args"]["decay"] for c in own["trainer"]["callbacks"] if c["class_path"] == EMA] == [0.5]


def cut(run, lines, without, checkpoints=None):
    """Leave of a run what a kill would have: so many events, and neither these stages nor these checkpoints."""
    file = run / Record.FILE
    kept = file.read_text().splitlines(keepends=True)[:lines]
    file.write_text("".join(kept))
    for name in without:
        shutil.rmtree(run / name)
    for name in checkpoints or ():
        shutil.rmtree(run / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "without", "checkpoints"),
    [
        pytest.param(6, ["edits"], ["more_clips/checkpoints/step-000006"], id="before the validation at a checkpoint"),
        pytest.param(7, ["edits"], ["more_clips/checkpoints/step-000006"], id="in the second stage"),
        pytest.param(8, ["edits"], [], id="before the end is on record"),
        pytest.param(9, ["edits"], [], id="between two stages"),
        pytest.param(10, [], ["edits/checkpoints"], id="before a stage's first checkpoint"),
    ],
)
def test_an_interrupted_run_goes_on_where_it_was(whole, tmp_path, lines, without, checkpoints):
    path, truth = whole
    run = tmp_path / "run"
    shutil.copytree(truth, run, symlinks=True)
    cut(run, lines, without, checkpoints)
    assert fit(path, run, "--ckpt_path", run) == 0
    assert_equal_runs(run, truth)
    told = {(e["event"], e["stage"], e["step"]): e["figures"] for e in Record(truth).entries()}
    told_again = {(e["event"], e["stage"], e["step"]): e["figures"] for e in Record(run).entries()}
    assert told_again == told


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


def test_mistakes_are_told_before_anything_trains(curriculum, config, tmp_path, capsys):
    run = tmp_path / "run"

    def error(path, *arguments):
        assert fit(path, run, *arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    wrong = {"settings": {"model": {"edit_weigth": 2.0}}}
    assert "Stage 'edits': " in (told := error(curriculum(edits=wrong)))
    assert "edit_weight" in told
    parts = {"edits": stage_data(config, "edits", manifest="nowhere.jsonl")}
    assert "Stage 'edits': data.init_args.manifest is nowhere.jsonl" in error(curriculum(parts))
    assert "Stage 'more_clips' needs steps >= 1" in error(curriculum(more_clips={"steps": 0}))
    assert "Stage 'other' has no data module" in error(curriculum(more_clips={"name": "other"}))
    assert not run.exists()
    run.mkdir()
    told = error(curriculum(), "--ckpt_path", run, "--resume_mode", "full")
    assert "holds no checkpoint of any stage" in told
    assert os.listdir(run) == []


def test_processes_that_cannot_share_a_batch_are_told_before_anything_trains(
    curriculum, config, tmp_path, capsys, monkeypatch
):
    def error(path, devices):
        assert fit(path, tmp_path / "run", "--trainer.devices", devices) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    large = {name: stage_data(config, name, batch_size=4) for name in ("clips", "more_clips")}
    path = curriculum(large)  # edits: two passes of one sample
    told = error(path, 4)
    assert told.startswith(
        "icve: error: Stage 'edits': A batch of 2 samples of bucket 32x32x5 is too small for 4 groups"
    )
    # What a launcher started counts, not what Lightning would.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert "too small for 3 groups" in error(path, 1)
    pairs = {"class_path": ULYSSES, "init_args": {"sequence_parallel_size": 2}}
    path = curriculum(large, edits={"settings": {"trainer": {"strategy": pairs}}})
    assert "Stage 'edits': 3 processes cannot be grouped by 2" in error(path, 1)


@pytest.mark.parametrize(
    ("trainer", "processes"),
    [
        ({"devices": 3, "num_nodes": 2}, 6),
        ({"devices": "3"}, 3),
        ({"devices": [0, 2]}, 2),
        ({"devices": "0,2,"}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": "auto"}, 5),
        ({"devices": -1, "num_nodes": 2, "accelerator": "gpu"}, 10),
        ({}, 5),
    ],
)
def test_processes_are_counted(trainer, processes, monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", lambda: 5)
    assert count_processes(trainer) == processes


def test_of_slurm_its_tasks_are_counted(monkeypatch):
    names = {"SLURM_NTASKS": "12", "SLURM_NTASKS_PER_NODE": "6", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert count_processes({"devices": 1}) == 12


@pytest.fixture
def never_killed():
    """A signal that nobody hears does not end the tests."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("where", ["in its last validation", "between two stages"])
def test_a_run_told_to_stop_at_the_end_of_a_stage_does_not_begin_the_next(
    whole, curriculum, tmp_path, monkeypatch, caplog, never_killed, where
):
    caplog.set_level(logging.INFO)
    plain, truth = whole
    path, run, train = plain, tmp_path / "run", stage_runs._run_to_its_end
    if where == "between two stages":

        def train_and_be_told(*arguments):
            ended = train(*arguments)
            os.kill(os.getpid(), signal.SIGUSR1)
            return ended

        monkeypatch.setattr(stage_runs, "_run_to_its_end", train_and_be_told)
    else:
        path = curriculum(clips=told_at_the_end("clips"))
    mine = signal.getsignal(signal.SIGUSR1)
    assert fit(path, run) == 0
    assert signal.getsignal(signal.SIGUSR1) == mine
    assert not (run / "more_clips").exists()
    assert f"Stage 'clips' has ended and the run was stopped; resume with --ckpt_path {run}." in caplog.text
    monkeypatch.undo()
    assert fit(plain, run, "--ckpt_path", run) == 0
    assert_equal_runs(run, truth)


def told_at_the_end(stage, **options):
    callback = {"class_path": "tests.training.told.ToldAtTheEnd", "init_args": {"stage": stage, **options}}
    return {"settings": {"trainer": {"callbacks": [callback]}}}


def test_resumed_before_its_first_checkpoint_it_begins_anew(whole, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path, truth = whole
    run = tmp_path / "run"
    shutil.copytree(truth, run, symlinks=True)
    cut(run, 1, ["more_clips", "edits"], ["clips/checkpoints"])
    assert fit(path, run, "--ckpt_path", run) == 0
    assert f"{run} is the run's own folder and holds no checkpoint yet" in caplog.text
    assert_equal_runs(run, truth)
    assert events(run) == events(truth)


def test_an_earlier_run_is_not_overwritten_and_an_ended_one_has_nothing_to_train(whole, capsys):
    path, run = whole
    before = sorted(run.rglob("*"))
    assert fit(path, run) == 2
    assert f"resume it with --ckpt_path {run}" in capsys.readouterr().err
    assert fit(path, run, "--ckpt_path", run) == 2
    assert "Nothing to train: all stages" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


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
@pytest.mark.timeout(3 * TIME_LIMIT)
def test_killed_in_the_second_stage_and_resumed_equals_uninterrupted(started, curriculum, tmp_path):
    path = curriculum(more_clips={"steps": 60})
    truth, run = tmp_path / "truth", tmp_path / "run"
    finish(started(path, truth), TIME_LIMIT)
    process = started(path, run)
    file, deadline = run / "more_clips" / "steps.jsonl", time.monotonic() + TIME_LIMIT
    while not file.exists() or file.read_text().count("\n") < 25:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIME_LIMIT)
    assert len(steps(run, "more_clips")) < 60
    finish(started(path, run, "--ckpt_path", run), TIME_LIMIT)
    assert_equal_runs(run, truth)
    assert events(run) == events(truth)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(2 * TIME_LIMIT)
def test_two_processes_switch_together(started, whole, curriculum, config, tmp_path):
    # Two processes share the tokens of the first stage's samples and of the last one's.
    count = [{"class_path": "tests.training.told.GroupCount"}]
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
    before, after = (load(weights(alone, name)) for name in ("clips", "more_clips"))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) > 0.01
    for name in ("clips", "more_clips"):
        together, by_one = load(weights(run, name)), load(weights(alone, name))
        for key, value in by_one.items():  # sums in another order, through an optimizer that computes in bfloat16
            assert torch.allclose(together[key], value, atol=0.003), (name, key)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(TIME_LIMIT)
def test_one_of_two_processes_told_at_the_end_of_a_stage_stops_both(started, curriculum, tmp_path):
    path, run = curriculum(clips=told_at_the_end("clips", rank=1)), tmp_path / "run"
    finish(started(path, run, "--trainer.devices", 2, "--trainer.strategy", "ddp"), TIME_LIMIT)
    assert events(run)[-1][:2] == ("end", "clips")
    assert not (run / "more_clips").exists()
