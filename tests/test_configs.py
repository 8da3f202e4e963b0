"""Every shipped training configuration is built; the demo's also train on real videos, the debug ones on made ones."""

import json
import re
import shutil
from itertools import chain
from pathlib import Path

import pytest
import yaml

from icve.cli.main import main
from icve.data.manifest import write_manifest
from icve.evaluation.suite import load_suite
from icve.models.counting import build_on_meta
from icve.models.families import family_of_class
from icve.models.family import located
from icve.models.loading import load_transformer
from icve.training.run import stage_runs
from icve.training.run.command import TrainingCommand
from icve.training.run.stage_checks import check_batches
from icve.training.run.stage_runs import stage_config, stages_of
from tests.training import runs

FOLDER = Path(__file__).resolve().parents[1] / "configs"
SUITES = sorted((FOLDER / "evaluation").glob("*.yaml"))  # of metrics
FILES = sorted(set(FOLDER.rglob("*.yaml")).difference(SUITES))
NAMED = {path.relative_to(FOLDER).as_posix().removesuffix(".yaml"): path for path in FILES}
CURRICULA = [name for name in NAMED if "curriculum" in name]
ADDED = {"demo/wan": "demo/sft"}  # what another one has otherwise
CONFIGS = [name for name in NAMED if name not in CURRICULA]  # of one stage
DEMO = {path.stem: path for name, path in NAMED.items() if name.startswith("demo/")}
DEBUG = [name for name in CONFIGS if name.startswith("debug/")]
OURS = ("demo/", "debug/", "experiments/")
PAPER = [n for n in CONFIGS if not n.startswith(OURS) and "lora" not in n and "pictures" not in n]
STAGES = ("pretrain_240p", "pretrain_480p", "sft")
WAN = ("1.3b", "5b", "14b")
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
def variables(tiny_weights, tiny_wan, tiny_pairs, tiny_pictures, monkeypatch):
    """The environment variables of all configurations name the tiny weights and pairs."""
    hunyuan = {"WEIGHTS": tiny_weights, "DEBUG_WEIGHTS": tiny_weights}
    wan = dict.fromkeys(("WAN_1_3B", "WAN_14B", "DEBUG_WAN"), tiny_wan[0])
    for name, folder in (hunyuan | wan | dict.fromkeys(("WAN_5B", "DEBUG_WAN_5B"), tiny_wan[1])).items():
        monkeypatch.setenv(f"ICVE_{name}", str(folder))
        editor = name.replace("WEIGHTS", "EDITOR") if folder == tiny_weights else f"{name}_EDITOR"
        monkeypatch.setenv(f"ICVE_{editor}", str(folder / "transformer"))
    for name in ("ICVE_CLIPS", "ICVE_EDITS", "ICVE_HELD_OUT_CLIPS", "ICVE_HELD_OUT_EDITS", "ICVE_DEBUG_MANIFEST"):
        monkeypatch.setenv(name, str(tiny_pairs))
    for name in ("ICVE_PICTURES", "ICVE_DEBUG_PICTURES"):
        monkeypatch.setenv(name, str(tiny_pictures))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_built(name, tmp_path, monkeypatch, variables):
    monkeypatch.chdir(tmp_path)
    if name not in DEBUG:  # the tiny text encoders are no match for the released transformers
        monkeypatch.setattr("icve.training.module.check_parts", lambda *_: None)
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
    files = [str(NAMED[one]) for one in (ADDED.get(name), name) if one]
    with pytest.raises(Built) as built:
        TrainingCommand(["fit", *chain(*(("-c", file) for file in files)), "--trainer.default_root_dir", str(tmp_path)])
    command = built.value.args[0]
    assert command.trainer.max_steps > 0
    assert command.model.stage
    sampling, (bucket, *_) = command.model.sampling, command.datamodule.buckets
    assert (sampling.height, sampling.width, sampling.num_frames) in [tuple(b) for b in command.datamodule.buckets]
    assert bucket.frames % 4 == 1
    assert command.model.codec.latent_channels == command.model.transformer.config.in_channels
    assert command.datamodule.grid == command.model.grid
    for size in command.datamodule.buckets:
        command.model.grid.check(*size)
    # Pretrained weights follow: 13 B parameters are not made up first.
    assert command.model.on_meta == (not name.startswith("demo/"))


def test_the_demo_stages_differ_where_they_must_and_share_the_model():
    assert set(DEMO) == {"pretrain", "sft", "wan"}
    pretrain, sft = (yaml.safe_load(DEMO[name].read_text()) for name in ("pretrain", "sft"))
    assert pretrain["model"]["stage"] != sft["model"]["stage"]
    assert pretrain["trainer"]["default_root_dir"] != sft["trainer"]["default_root_dir"]
    for part in ("transformer", "frozen"):
        assert pretrain["model"][part] == sft["model"][part]
    objectives = [config["model"]["objective"]["init_args"] for config in (pretrain, sft)]
    assert all(one["predicts"] == "velocity" for one in objectives)
    assert objectives[0]["density"] == objectives[1]["density"]


def test_the_demos_backbones_differ_in_nothing_but_the_transformer_and_have_as_many_parameters():
    wan, other = (yaml.safe_load(DEMO[name].read_text())["model"] for name in ("wan", "sft"))
    assert yaml.safe_load(DEMO["wan"].read_text()) == {"model": {"transformer": wan["transformer"]}}
    parts = [model["transformer"] for model in (wan, other)]
    built = [build_on_meta(located(part["class_path"]), part["init_args"]) for part in parts]
    mine, theirs = (sum(parameter.numel() for parameter in model.parameters()) for model in built)
    assert abs(mine / theirs - 1) < 0.01
    assert built[0].config.text_dim == other["frozen"]["text_encoder"]["init_args"]["text_dim"]
    assert built[0].config.text_len is None  # no rows of zeros, among which a few words would drown


@pytest.mark.parametrize("size", [None, *WAN])
def test_the_papers_values(size):
    clips = {"pretrain_240p": [[240, 384, 77], [384, 240, 77], [256, 256, 125]]}
    clips["pretrain_480p"] = [[480, 768, 77], [768, 480, 77], [512, 512, 125]]
    edits = [[480, 768, 77], [768, 480, 77], [576, 1024, 21], [1024, 576, 21], [336, 592, 29], [592, 336, 29]]
    expected = {  # methods: ICVE 1.3
        "pretrain_240p": (clips["pretrain_240p"], 32, 1e-5, 30_000),
        "pretrain_480p": (clips["pretrain_480p"], 32, 1e-5, 10_000),
        "sft": ([*edits, [480, 480, 125]], 12, 1e-6, 12_000),
    }
    assert len(PAPER) == len(expected) * (1 + len(WAN))
    for name in expected:
        config = yaml.safe_load(NAMED[name if size is None else f"wan/{name}_{size}"].read_text())
        model, trainer, data = config["model"], config["trainer"], config["data"]["init_args"]
        batch = data["batch_size"] * trainer["accumulate_grad_batches"]
        lr = model["optimizer"]["init_args"]["lr"]
        buckets, *numbers = expected[name]
        assert [batch, lr, trainer["max_steps"]] == numbers
        if size == "5b":  # its codec and patches cut pictures into squares of 32 pixels
            differences = [abs(x - y) for x, y in zip(chain(*data["buckets"]), chain(*buckets), strict=True)]
            assert max(differences) <= 16
            assert set(differences[2::3]) == {0}  # of frames
        else:
            assert data["buckets"] == buckets
        assert model["stage"] == name
        assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
        assert model["checkpointing"] == {"mode": "full"}
        assert trainer["precision"] == "bf16-mixed"
        assert trainer["strategy"]["class_path"] == "icve.training.distributed.strategies.DeepSpeedUlyssesStrategy"
        assert "icve.training.callbacks.ema.EMA" in [callback["class_path"] for callback in trainer["callbacks"]]
        assert set(config["variables"]) == {"weights", "manifest"}


@pytest.mark.parametrize(
    ("size", "parameters"), [("1.3b", 1_418_996_800), ("5b", 4_999_787_712), ("14b", 14_288_491_584)]
)
def test_wans_configurations_have_the_published_transformers(size, parameters):
    names = [name for name in NAMED if name.startswith("wan/") and name.endswith(f"_{size}")]
    assert len(names) == 5
    models = [yaml.safe_load(NAMED[name].read_text())["model"] for name in names]
    first, *others = (model["transformer"] for model in models)
    assert all(other == first for other in others)
    model = build_on_meta(located(first["class_path"]), first.get("init_args", {}))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    family = family_of_class(first["class_path"]).sampling  # as previews sample, and the editor that is saved
    for sampling in (model["sampling"] for model in models):
        assert [sampling[name] for name in ("shift", "guidance_scale")] == [family["shift"], family["guidance_scale"]]


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_a_curriculum_trains_the_same_stages_as_their_own_configurations(curriculum):
    config = yaml.safe_load(NAMED[curriculum].read_text())
    stages = {stage["name"]: stage for stage in stages_of(config)}
    assert tuple(stages) == STAGES
    for name, stage in stages.items():
        own = stage_config(config, stage, Path("runs"), None)
        own["data"] = own["data"]["init_args"]["stages"][name]
        alone = yaml.safe_load(NAMED[curriculum.replace("curriculum", name)].read_text())
        own, one = (dict(flat(c, all_keys=True)) for c in (own, alone))
        differing = {key for key in own.keys() | one.keys() if own.get(key) != one.get(key)}
        named = {"variables", "ckpt_path", "trainer.default_root_dir", "trainer.callbacks", "model.stage"}
        assert {key.split(".init_args.")[-1] for key in differing if not key.startswith("variables.")} <= named | {
            "manifest",
            "val_manifest",
            *(["sequence_parallel_size"] if (curriculum, name) == ("curriculum", "sft") else []),
        }, name
        assert own["model.stage"] == name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("wan/") else name for name in CURRICULA]
)
def test_every_stage_of_a_curriculum_is_checked_before_the_first_one_trains(name, variables, tmp_path, monkeypatch):
    trained = []

    def stop(config, begun, run_stage):
        trained.append(config["model"]["stage"])
        return False

    monkeypatch.setattr(stage_runs, "_run_to_its_end", stop)
    words = ["fit", "-c", str(NAMED[name]), "--trainer.default_root_dir", str(tmp_path)]
    debug = name.startswith("debug/")
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "2" if debug else "8" if "wan" in name else "64"]
    assert main(words) == 0
    assert trained == ["pretrain_240p"]
    monkeypatch.setenv("ICVE_DEBUG_MANIFEST" if debug else "ICVE_EDITS", str(tmp_path / "nowhere"))
    assert main(words) == 2
    assert trained == ["pretrain_240p"]


def test_the_job_for_slurm_and_the_curriculum_go_together(repository):
    """Every stage's batch can be shared by the processes that the job asks for."""
    script = (repository / "tools" / "train.sbatch").read_text()
    asked = {name: int(number) for name, number in re.findall(r"^#SBATCH --([a-z-]+)=(\d+)$", script, re.MULTILINE)}
    nodes, tasks = asked["nodes"], asked["ntasks-per-node"]
    config = yaml.safe_load(NAMED["curriculum"].read_text())
    config["trainer"] |= {"devices": tasks, "num_nodes": nodes}
    for stage in stages_of(config):
        own = stage_config(config, stage, Path("runs"), None)
        check_batches(own["trainer"], own["data"]["init_args"]["stages"][stage["name"]])


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in CURRICULA if name.startswith("debug/")])
def test_the_debug_curriculum_trains_on_two_devices(name, variables, tmp_path):
    path = NAMED[name]
    words = ["fit", "-c", path, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", tmp_path]
    runs.run_in_turn([words], 2, tmp_path, seconds=300)
    for name in STAGES:
        assert is_configured(tmp_path / name, path)
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


def is_configured(run, path):
    """Whether a run's transformer loads and is the one of a configuration."""
    config = load_transformer(run).config
    arguments = yaml.safe_load(path.read_text())["model"]["transformer"]["init_args"]
    return all(
        list(config[name]) == value if isinstance(value, list) else config[name] == value
        for name, value in arguments.items()
    )


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
# Wan's are shared out as eight GPUs allow.
SHARED_OUT = {"trainer.accumulate_grad_batches"}
SHARED_OUT |= {f"trainer.strategy.init_args.{name}" for name in ("stage", "sequence_parallel_size")}
SMALLER |= {"data.init_args.fps", *(f"model.sampling.{name}" for name in ("num_frames", "height", "width", "fps"))}


def flat(config, prefix="", all_keys=False):
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and (all_keys or name not in SMALLER):
            yield from flat(value, f"{name}.", all_keys)
        else:
            yield name, value


PAIRS = [(name.removeprefix("debug/"), name) for name in DEBUG]
PAIRS += [(real.replace("1.3b", "14b"), small) for real, small in PAIRS if "1.3b" in real]


@pytest.mark.parametrize(("real", "small"), PAIRS, ids=[real for real, _ in PAIRS])
def test_a_debug_configuration_is_the_real_one_but_smaller(real, small):
    allowed = SMALLER | (SHARED_OUT if real.startswith("wan/") else set())
    real, small = (dict(flat(yaml.safe_load(NAMED[name].read_text()))) for name in (real, small))
    assert {key for key in real.keys() | small.keys() if real.get(key) != small.get(key)} <= allowed
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
@pytest.mark.parametrize("pattern", ["debug/{}", "debug/wan/{}_1.3b"])
def test_the_debug_stages_follow_each_other_and_resume_on_two_devices(pattern, variables, tmp_path):
    commands, previous = [], []
    for name in STAGES:
        run, path = tmp_path / name, NAMED[pattern.format(name)]
        words = ["fit", "-c", path, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", run]
        commands += [[*words, *previous], [*words, "--ckpt_path", run, "--trainer.max_steps", 3]]
        previous = ["--ckpt_path", run, "--model.start.pretrained", "not/read"]
    runs.run_in_turn(commands, 2, tmp_path, seconds=600)
    for name in STAGES:
        assert trained_steps(tmp_path / name) == [0, 1, 2]
        assert (tmp_path / name / "checkpoints" / "last" / "state" / "00001-of-00002-000.safetensors").is_file()
    # Frozen weights are not copied into checkpoints: the folder refers to them.
    assert is_configured(run, path)
    assert sum(file.stat().st_size for file in run.rglob("*.safetensors")) < 16 * 2**20


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_the_debug_stage_of_wan_22_trains_on_two_devices(variables, tmp_path):
    path = NAMED["debug/wan/pretrain_240p_5b"]
    words = ["fit", "-c", path, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", tmp_path]
    runs.run_in_turn([words], 2, tmp_path, seconds=240)
    assert trained_steps(tmp_path) == [0, 1]
    assert is_configured(tmp_path, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DEBUG if "lora" in name])
def test_the_debug_adapter_trains(name, variables, tmp_path):
    words = ["fit", "-c", str(NAMED[name]), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar"]
    assert main([*words, "false", "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert trained_steps(tmp_path) == [0, 1]
    assert not (tmp_path / "checkpoints" / "last" / "transformer").exists()
    assert is_configured(tmp_path, NAMED[name])


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_videos_and_pictures_train_in_one_run_on_two_devices(variables, tmp_path):
    """Both devices share every sample's tokens, and the run resumes; or each has samples of its own: equal losses."""
    words = ["fit", "-c", NAMED["debug/sft_pictures"], "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    shared = [*words, "--trainer.default_root_dir", tmp_path / "shared", "--trainer.max_steps"]
    apart = [*words, "--trainer.default_root_dir", tmp_path / "apart", "--trainer.max_steps", 6]
    apart += ["--trainer.strategy.init_args.sequence_parallel_size", 1]
    runs.run_in_turn([[*shared, 4], [*shared, 6, "--ckpt_path", tmp_path / "shared"], apart], 2, tmp_path, seconds=500)
    assert trained_steps(tmp_path / "shared") == list(range(6))
    both = [runs.steps(tmp_path / name) for name in ("shared", "apart")]
    assert [line["ids"] for line in both[0]] == [line["ids"] for line in both[1]]
    losses = [[line["loss"] for line in lines] for lines in both]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", [*STAGES, "wan/sft_5b"])
def test_missing_weights_and_data_are_told_at_once(name, tmp_path, monkeypatch, capsys, tiny_weights, tiny_wan):
    monkeypatch.chdir(tmp_path)
    weights, folder, default = "ICVE_WEIGHTS", tiny_weights, "weights/hunyuanvideo/transformer"
    if "wan" in name:
        weights, folder, default = "ICVE_WAN_5B", tiny_wan[1], "weights/wan2.2-5b/transformer"
    for variable in (weights, "ICVE_CLIPS", "ICVE_EDITS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(TrainingCommand, "instantiate_classes", lambda self: pytest.fail("classes were built"))
    assert main(["fit", "-c", str(NAMED[name])]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    whose = "Wan" if "wan" in name else "HunyuanVideo"
    assert f"{default}, which does not exist: put {whose}'s text-to-video weights" in message
    monkeypatch.setenv(weights, str(folder))
    assert main(["fit", "-c", str(NAMED[name])]) == 2
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
def test_suites_of_metrics_load(path, metric_models, monkeypatch):
    monkeypatch.setenv("ICVE_MODELS", str(metric_models))
    assert load_suite(path).metrics
    assert load_suite(path.stem).entries == load_suite(path).entries
