"""Every shipped training configuration is built; the demo's also train on real videos, the debug ones on made ones."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from icve.cli.main import main
from icve.data.manifest import write_manifest
from icve.evaluation.suite import load_suite
from icve.models.loading import load_transformer
from icve.training.run import stage_runs
from icve.training.run.command import TrainingCommand
from icve.training.run.stage_checks import check_batches
from icve.training.run.stage_runs import stage_config, stages_of
from tests.training import runs

FOLDER = Path(__file__).resolve().parents[1] / "configs"
SUITES = sorted((FOLDER / "evaluation").glob("*.yaml"))  # of metrics
FILES = sorted(set(FOLDER.rglob("*.yaml")).difference(SUITES))
CURRICULA = {path.parent.name: path for path in FILES if path.stem == "curriculum"}  # by folder
CONFIGS = [path for path in FILES if path not in CURRICULA.values()]  # of one stage
DEMO = {path.stem: path for path in CONFIGS if path.parent.name == "demo"}
REAL = {path.stem: path for path in CONFIGS if path.parent.name == "configs"}
PAPER = {name: path for name, path in REAL.items() if name not in ("sft_lora", "sft_pictures")}
DEBUG = {path.stem: path for path in CONFIGS if path.parent.name == "debug"}
STAGES = ("pretrain_240p", "pretrain_480p", "sft")
# The same configuration on fewer layers and steps.
SMALL = ["--model.transformer.init_args.num_layers", "1", "--model.transformer.init_args.num_single_layers", "1"]
SMALL += ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.accelerator", "cpu"]
SMALL += ["--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
SMALL += ["--data.init_args.batch_size", "2", "--data.init_args.buckets", "[[48, 80, 5]]"]


class Built(Exception):
    """Raised instead of training."""


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory, make_tiny_weights):
    """A tiny random HunyuanVideo, as tools/make_tiny_weights.py writes it."""
    return make_tiny_weights(tmp_path_factory.mktemp("hunyuan") / "weights")


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory):
    """The pairs that the debug configurations say how to make."""
    folder = tmp_path_factory.mktemp("pairs") / "data"
    words = ["synthesize", "pairs", "--split", "train", "--seed", "0", "--count", "12", "--output", str(folder)]
    assert main([*words, "--size", "48x80", "80x48", "64x64"]) == 0
    return folder / "manifest.parquet"


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory):
    """The pictures that the debug configuration says how to make."""
    folder = tmp_path_factory.mktemp("pictures") / "data"
    words = ["synthesize", "pairs", "--split", "train", "--seed", "0", "--count", "12", "--output", str(folder)]
    assert main([*words, "--size", "64x96", "--frames", "1"]) == 0
    return folder / "manifest.parquet"


@pytest.fixture
def variables(tiny_weights, tiny_pairs, tiny_pictures, monkeypatch):
    """The environment variables of all configurations name the tiny weights and pairs."""
    for name in ("ICVE_WEIGHTS", "ICVE_DEBUG_WEIGHTS"):
        monkeypatch.setenv(name, str(tiny_weights))
    for name in ("ICVE_EDITOR", "ICVE_DEBUG_EDITOR"):
        monkeypatch.setenv(name, str(tiny_weights / "transformer"))
    for name in ("ICVE_CLIPS", "ICVE_EDITS", "ICVE_HELD_OUT_CLIPS", "ICVE_HELD_OUT_EDITS", "ICVE_DEBUG_MANIFEST"):
        monkeypatch.setenv(name, str(tiny_pairs))
    for name in ("ICVE_PICTURES", "ICVE_DEBUG_PICTURES"):
        monkeypatch.setenv(name, str(tiny_pictures))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_configuration_is_built(path, tmp_path, monkeypatch, variables):
    monkeypatch.chdir(tmp_path)
    for part in ("clips", "pairs"):  # what the demo makes before it trains
        (tmp_path / "runs" / "demo" / "data" / part).mkdir(parents=True)
        for split in ("train", "validation"):
            (tmp_path / "runs" / "demo" / "data" / part / f"{split}.parquet").touch()
    (tmp_path / "runs" / "conditions" / "data").mkdir(parents=True)  # what its experiment makes, and starts from
    (tmp_path / "runs" / "conditions" / "data" / "manifest.parquet").touch()
    (tmp_path / "icve").mkdir()
    (tmp_path / "icve" / "editor").symlink_to(FOLDER.parent / "icve" / "editor")

    def stop(self, subcommand):
        self.built = (self.trainer, self.model, self.datamodule)
        raise Built(self)

    monkeypatch.setattr(TrainingCommand, "_run_subcommand", stop)
    with pytest.raises(Built) as built:
        TrainingCommand(["fit", "-c", str(path), "--trainer.default_root_dir", str(tmp_path)])
    command = built.value.args[0]
    assert command.trainer.max_steps > 0
    assert command.model.stage
    sampling, (bucket, *_) = command.model.sampling, command.datamodule.buckets
    assert (sampling.height, sampling.width, sampling.num_frames) in [tuple(b) for b in command.datamodule.buckets]
    assert bucket.frames % 4 == 1
    # Pretrained weights follow: 13 B parameters are not made up first.
    assert command.model.on_meta == (path.parent.name != "demo")


def test_the_demo_stages_differ_where_they_must_and_share_the_model():
    assert set(DEMO) == {"pretrain", "sft"}
    pretrain, sft = (yaml.safe_load(DEMO[name].read_text()) for name in ("pretrain", "sft"))
    assert pretrain["model"]["stage"] != sft["model"]["stage"]
    assert pretrain["trainer"]["default_root_dir"] != sft["trainer"]["default_root_dir"]
    for part in ("transformer", "frozen"):
        assert pretrain["model"][part] == sft["model"][part]
    objectives = [config["model"]["objective"]["init_args"] for config in (pretrain, sft)]
    assert all(one["predicts"] == "velocity" for one in objectives)
    assert objectives[0]["density"] == objectives[1]["density"]


def test_the_papers_values():
    clips = {"pretrain_240p": [[240, 384, 77], [384, 240, 77], [256, 256, 125]]}
    clips["pretrain_480p"] = [[480, 768, 77], [768, 480, 77], [512, 512, 125]]
    edits = [[480, 768, 77], [768, 480, 77], [576, 1024, 21], [1024, 576, 21], [336, 592, 29], [592, 336, 29]]
    expected = {  # methods: ICVE 1.3
        "pretrain_240p": (clips["pretrain_240p"], 32, 1e-5, 30_000),
        "pretrain_480p": (clips["pretrain_480p"], 32, 1e-5, 10_000),
        "sft": ([*edits, [480, 480, 125]], 12, 1e-6, 12_000),
    }
    assert set(PAPER) == set(expected)
    for name, path in PAPER.items():
        config = yaml.safe_load(path.read_text())
        model, trainer, data = config["model"], config["trainer"], config["data"]["init_args"]
        batch = data["batch_size"] * trainer["accumulate_grad_batches"]
        lr = model["optimizer"]["init_args"]["lr"]
        assert (data["buckets"], batch, lr, trainer["max_steps"]) == expected[name]
        assert model["stage"] == name
        assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
        assert model["checkpointing"] == {"mode": "full"}
        assert trainer["precision"] == "bf16-mixed"
        assert trainer["strategy"]["class_path"] == "icve.training.distributed.strategies.DeepSpeedUlyssesStrategy"
        assert "icve.training.callbacks.ema.EMA" in [callback["class_path"] for callback in trainer["callbacks"]]
        assert set(config["variables"]) == {"weights", "manifest"}


@pytest.mark.parametrize("folder", ["configs", "debug"])
def test_a_curriculum_trains_the_same_stages_as_their_own_configurations(folder):
    config = yaml.safe_load(CURRICULA[folder].read_text())
    alone = REAL if folder == "configs" else DEBUG
    stages = {stage["name"]: stage for stage in stages_of(config)}
    assert tuple(stages) == STAGES
    for name, stage in stages.items():
        own = stage_config(config, stage, Path("runs"), None)
        own["data"] = own["data"]["init_args"]["stages"][name]
        own, one = (dict(flat(c, all_keys=True)) for c in (own, yaml.safe_load(alone[name].read_text())))
        differing = {key for key in own.keys() | one.keys() if own.get(key) != one.get(key)}
        named = {"variables", "ckpt_path", "trainer.default_root_dir", "trainer.callbacks", "model.stage"}
        assert {key.split(".init_args.")[-1] for key in differing if not key.startswith("variables.")} <= named | {
            "manifest",
            "val_manifest",
            *(["sequence_parallel_size"] if (folder, name) == ("configs", "sft") else []),
        }, name
        assert own["model.stage"] == name


@pytest.mark.parametrize("folder", ["configs", "debug"])
def test_every_stage_of_a_curriculum_is_checked_before_the_first_one_trains(folder, variables, tmp_path, monkeypatch):
    trained = []

    def stop(config, begun, run_stage):
        trained.append(config["model"]["stage"])
        return False

    monkeypatch.setattr(stage_runs, "_run_to_its_end", stop)
    words = ["fit", "-c", str(CURRICULA[folder]), "--trainer.default_root_dir", str(tmp_path)]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "64" if folder == "configs" else "2"]
    assert main(words) == 0
    assert trained == ["pretrain_240p"]
    monkeypatch.setenv("ICVE_EDITS" if folder == "configs" else "ICVE_DEBUG_MANIFEST", str(tmp_path / "nowhere"))
    assert main(words) == 2
    assert trained == ["pretrain_240p"]


def test_the_job_for_slurm_and_the_curriculum_go_together(repository):
    """Every stage's batch can be shared by the processes that the job asks for."""
    script = (repository / "tools" / "train.sbatch").read_text()
    asked = {name: int(number) for name, number in re.findall(r"^#SBATCH --([a-z-]+)=(\d+)$", script, re.MULTILINE)}
    nodes, tasks = asked["nodes"], asked["ntasks-per-node"]
    config = yaml.safe_load(CURRICULA["configs"].read_text())
    config["trainer"] |= {"devices": tasks, "num_nodes": nodes}
    for stage in stages_of(config):
        own = stage_config(config, stage, Path("runs"), None)
        check_batches(own["trainer"], own["data"]["init_args"]["stages"][stage["name"]])


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_the_debug_curriculum_trains_on_two_devices(variables, tmp_path):
    words = ["fit", "-c", CURRICULA["debug"], "--trainer.accelerator", "cpu", "--trainer.default_root_dir", tmp_path]
    runs.run_in_turn([words], 2, tmp_path, seconds=300)
    for name in STAGES:
        assert load_transformer(tmp_path / name).config.num_single_layers == 2
        assert (tmp_path / name / "checkpoints" / "best").is_symlink()
    # As if it had been killed before its last stage: resumed, it trains that one.
    shutil.rmtree(tmp_path / "sft")
    record = tmp_path / "curriculum.jsonl"
    entries = [line for line in record.read_text().splitlines(keepends=True) if json.loads(line)["stage"] != "sft"]
    assert len(entries) == 6
    record.write_text("".join(entries))
    runs.run_in_turn([[*words, "--ckpt_path", tmp_path]], 2, tmp_path, seconds=300)
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    ends = {entry["stage"]: entry for entry in entries if entry["event"] == "end"}
    assert [(name, ends[name]["run_step"]) for name in STAGES] == [
        ("pretrain_240p", 2),
        ("pretrain_480p", 4),
        ("sft", 6),
    ]
    assert all(ends[name]["figures"].keys() >= {"val/loss", "val/preview_psnr_target"} for name in STAGES)


# What a debug configuration may set otherwise than the one it stands for.
SMALLER = {"variables", "trainer.default_root_dir", "trainer.max_steps", "trainer.devices", "trainer.log_every_n_steps"}
SMALLER |= {
    "trainer.precision",
    "trainer.val_check_interval",
    "trainer.callbacks",
    "model.stage",
    "model.transformer.init_args",
}
SMALLER |= {
    "model.schedule.warmup_steps",
    "data.init_args.buckets",
    "data.init_args.batch_size",
    "data.init_args.num_workers",
}
SMALLER |= {"data.init_args.fps", *(f"model.sampling.{name}" for name in ("num_frames", "height", "width", "fps"))}


def flat(config, prefix="", all_keys=False):
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and (all_keys or name not in SMALLER):
            yield from flat(value, f"{name}.", all_keys)
        else:
            yield name, value


@pytest.mark.parametrize("name", [*STAGES, "sft_lora", "sft_pictures"])
def test_a_debug_configuration_is_the_real_one_but_smaller(name):
    real, small = (dict(flat(yaml.safe_load(paths[name].read_text()))) for paths in (REAL, DEBUG))
    assert {key for key in real.keys() | small.keys() if real.get(key) != small.get(key)} <= SMALLER
    assert len(real["data.init_args.buckets"]) == len(small["data.init_args.buckets"])
    callbacks = [[callback["class_path"] for callback in config["trainer.callbacks"]] for config in (real, small)]
    assert callbacks[0] == callbacks[1]


def trained_steps(run):
    lines = runs.steps(run)
    assert all(line["loss"] > 0 for line in lines)
    return list(dict.fromkeys(line["step"] for line in lines))  # one line per batch of an accumulated step


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_the_debug_stages_follow_each_other_and_resume_on_two_devices(variables, tmp_path):
    commands, previous = [], []
    for name in STAGES:
        run = tmp_path / name
        words = ["fit", "-c", DEBUG[name], "--trainer.accelerator", "cpu", "--trainer.default_root_dir", run]
        commands += [[*words, *previous], [*words, "--ckpt_path", run, "--trainer.max_steps", 3]]
        previous = ["--ckpt_path", run, "--model.start.pretrained", "not/read"]
    runs.run_in_turn(commands, 2, tmp_path, seconds=600)
    for name in STAGES:
        assert trained_steps(tmp_path / name) == [0, 1, 2]
        assert (tmp_path / name / "checkpoints" / "last" / "state" / "00001-of-00002-000.safetensors").is_file()
    # Frozen weights are not copied into checkpoints: the folder refers to them.
    assert load_transformer(run).config.num_single_layers == 2
    assert sum(file.stat().st_size for file in run.rglob("*.safetensors")) < 16 * 2**20


@pytest.mark.slow
def test_the_debug_adapter_trains(variables, tmp_path):
    words = ["fit", "-c", str(DEBUG["sft_lora"]), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar"]
    assert main([*words, "false", "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert trained_steps(tmp_path) == [0, 1]
    assert not (tmp_path / "checkpoints" / "last" / "transformer").exists()
    assert load_transformer(tmp_path).config.num_single_layers == 2


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_videos_and_pictures_train_in_one_run_on_two_devices(variables, tmp_path):
    """Both devices share every sample's tokens, and the run resumes; or each has samples of its own: equal losses."""
    words = ["fit", "-c", DEBUG["sft_pictures"], "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    shared = [*words, "--trainer.default_root_dir", tmp_path / "shared", "--trainer.max_steps"]
    apart = [*words, "--trainer.default_root_dir", tmp_path / "apart", "--trainer.max_steps", 6]
    apart += ["--trainer.strategy.init_args.sequence_parallel_size", 1]
    runs.run_in_turn([[*shared, 4], [*shared, 6, "--ckpt_path", tmp_path / "shared"], apart], 2, tmp_path, seconds=500)
    assert trained_steps(tmp_path / "shared") == list(range(6))
    both = [runs.steps(tmp_path / name) for name in ("shared", "apart")]
    assert [line["ids"] for line in both[0]] == [line["ids"] for line in both[1]]
    losses = [[line["loss"] for line in lines] for lines in both]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", STAGES)
def test_missing_weights_and_data_are_told_at_once(name, tmp_path, monkeypatch, capsys, tiny_weights):
    monkeypatch.chdir(tmp_path)
    for variable in ("ICVE_WEIGHTS", "ICVE_CLIPS", "ICVE_EDITS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(TrainingCommand, "instantiate_classes", lambda self: pytest.fail("classes were built"))
    assert main(["fit", "-c", str(PAPER[name])]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "weights/hunyuanvideo/transformer, which does not exist: put HunyuanVideo's text-to-video weights" in message
    monkeypatch.setenv("ICVE_WEIGHTS", str(tiny_weights))
    assert main(["fit", "-c", str(PAPER[name])]) == 2
    assert "which does not exist: write one row per pair" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def fit(name, folder, *arguments):
    run = folder / name
    status = main(["fit", "-c", str(DEMO[name]), *SMALL, "--trainer.default_root_dir", str(run), *map(str, arguments)])
    assert status == 0
    lines = runs.steps(run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(line["loss"] > 0 for line in lines)
    return run, lines


@pytest.mark.slow
def test_the_demo_trains_on_real_clips_and_then_on_real_pairs(shared_data, tmp_path):
    long = shared_data / "videos" / "long"
    clips = [
        {"source_path": video.name, "source_start": start, "source_frames": 20, "instruction": "Let time go by."}
        | {"target_path": video.name, "target_start": start + 25, "target_frames": 20}
        for video in long.glob("*.mp4")
        for start in (0, 50, 100)
    ]
    manifest = write_manifest(clips, tmp_path / "clips.parquet", root=long)
    data = ["--data.init_args.fps", 8, "--data.init_args.manifest", manifest]
    run, _ = fit("pretrain", tmp_path, *data, "--data.init_args.val_manifest", "null")

    manifest = shared_data / "videos" / "manifest.jsonl"
    pairs = {json.loads(line)["id"] for line in manifest.read_text().splitlines() if json.loads(line).get("target")}
    assert len(pairs) == 14
    data = ["--data.init_args.columns", '{"source": "source_path", "target": "target_path"}']
    data += ["--data.init_args.manifest", manifest, "--data.init_args.val_manifest", "null"]
    sft, lines = fit("sft", tmp_path, *data, "--ckpt_path", run)
    used = [name for line in lines for name in line["ids"]]
    assert len(used) == 6
    assert set(used) <= pairs
    assert (sft / "checkpoints" / "last" / "model_index.json").is_file()


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suites_of_metrics_load(path):
    assert load_suite(path)
    assert [type(metric) for metric in load_suite(path.stem)] == [type(metric) for metric in load_suite(path)]
