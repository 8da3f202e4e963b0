"""A stage that starts from pretrained weights: when they are read, and what is said when they are not there."""

import pytest
import torch
import yaml

from icve.cli.main import main
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.loading import load_transformer
from icve.training.checkpoints.state_files import WEIGHTS, StateFiles
from icve.training.module import InContextEditingModule
from icve.training.run.command import TrainingCommand
from icve.training.run.paths import check_paths
from tests.training.conftest import tiny_transformer
from tests.training.runs import finish, run_in_turn, strategy


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights" / "transformer"
    tiny_transformer(seed=5).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tiny_yaml, weights):
    settings = yaml.safe_load(tiny_yaml.read_text())
    settings["variables"] = {"weights": str(weights.parent)}
    settings["model"] |= {
        "start": {"pretrained": "${variables.weights}/transformer"},
        "checkpointing": {"mode": "full"},
    }
    tiny_yaml.write_text(yaml.safe_dump(settings))
    return tiny_yaml


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("strategy", "precision"), [("DeepSpeedUlyssesStrategy", "bf16-mixed"), ("FSDPUlyssesStrategy", "32-true")]
)
def test_parts_of_them_are_trained_in_full_precision(config, weights, started, tmp_path, strategy, precision):
    """A learning rate that 16 bits would round away changes the weights of the stage, which the file has in 16 bits."""
    options = [f"--trainer.strategy=icve.training.distributed.strategies.{strategy}", "--trainer.precision", precision]
    options += ["--trainer.strategy.init_args.sequence_parallel_size", 2]
    options += ["--trainer.devices", 2, "--trainer.max_steps", 1, "--model.optimizer=torch.optim.AdamW"]
    options += ["--model.optimizer.init_args.lr", 1e-6, "--model.optimizer.init_args.weight_decay", 0.0]
    finish(started(config, tmp_path / "run", *options), 100)
    last = tmp_path / "run" / "checkpoints" / "last"
    stored, trained = load_transformer(weights).state_dict(), StateFiles(last / "state")
    for name, tensor in stored.items():
        now = trained.read(WEIGHTS, name, 0, tensor.numel())
        assert now.dtype == torch.float32
        torch.testing.assert_close(now, tensor.float().flatten(), atol=2e-6, rtol=0)
    changed = [not torch.equal(trained.read(WEIGHTS, n, 0, t.numel()), t.float().flatten()) for n, t in stored.items()]
    assert sum(changed) > len(changed) / 2


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(240)
def test_stages_start_from_the_float32_average_whoever_shares_the_weights(tiny_yaml, tmp_path):
    """Steps with learning rate 0 show what a stage started from, bit for bit; the editor beside it is rounded."""
    text = tiny_yaml.read_text().replace("icve.training.optimization.optimizers.MuonAdamW", "torch.optim.AdamW")
    kept = "keep_last: 0, asynchronous: true, export_every: 0, export_dtype: bfloat16"
    tiny_yaml.write_text(text.replace("keep_last: 0", kept).replace("val_check_interval: 4", "val_check_interval: 40"))
    first, further = tmp_path / "first", {}
    common = ["fit", "-c", tiny_yaml, "--trainer.default_root_dir"]
    commands = [[*common, first, *strategy("DDPUlyssesStrategy", 2, 1)]]
    for name, start, kind, options in [
        ("zero1", first, "DeepSpeedUlyssesStrategy", {"stage": 1}),
        ("zero3", first / "checkpoints" / "step-000002", "DeepSpeedUlyssesStrategy", {"stage": 3}),
        ("fsdp", first / "checkpoints" / "step-000002", "FSDPUlyssesStrategy", {}),
        ("ddp", first, "DDPUlyssesStrategy", {}),
    ]:
        own = [
            f"--model.stage={name}",
            "--trainer.max_steps=1",
            "--model.optimizer.init_args.lr=0.0",
            "--ckpt_path",
            start,
        ]
        commands.append([*common, tmp_path / name, *strategy(kind, 2, 1, **options), *own])
        commands[-1].append("--model.optimizer.init_args.weight_decay=0.0")
        further[name] = start
    run_in_turn(commands, 2, tmp_path, seconds=200)
    ranks = {file.name[:5] for file in (first / "checkpoints" / "last" / "state").iterdir()}
    assert ranks == {"00000", "00001"}
    for name, start in further.items():
        checkpoint = start if start != first else first / "checkpoints" / "step-000004"
        began = load_transformer(checkpoint, exact=True).state_dict()
        state = StateFiles(tmp_path / name / "checkpoints" / "last" / "state")
        for key, average in began.items():
            assert average.dtype == torch.float32
            assert torch.equal(state.whole(WEIGHTS, key, average.shape), average), (name, key)
    # The export: a file of each process, which diffusers reads too.
    editor = first / "checkpoints" / "last" / "transformer"
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert sorted(file.name for file in editor.glob("*.safetensors")) == names
    rounded = HunyuanVideoInContextTransformer3DModel.from_pretrained(editor, torch_dtype=torch.bfloat16).state_dict()
    ours = load_transformer(first).state_dict()
    for key, average in load_transformer(first, exact=True).state_dict().items():
        assert torch.equal(ours[key], average.bfloat16())
        assert torch.equal(rounded[key], average.bfloat16())
    assert not any((first / "checkpoints" / "step-000002" / "transformer").glob("*.safetensors"))


@pytest.fixture
def loaded(monkeypatch):
    """Paths that weights were loaded from."""
    paths, load = [], InContextEditingModule.load_weights
    monkeypatch.setattr(
        InContextEditingModule,
        "load_weights",
        lambda self, path, *a, **k: (paths.append(str(path)), load(self, path, *a, **k))[1],
    )
    return paths


def fit(config, *arguments):
    return main(["fit", "-c", str(config), *map(str, arguments)])


def test_the_stage_starts_from_them_in_its_own_dtype(config, weights, tmp_path, loaded):
    assert fit(config, "--model.optimizer.init_args.lr", 0.0, "--trainer.max_steps", 1) == 0
    assert loaded == [str(weights)]
    trained = load_transformer(tmp_path / "run" / "checkpoints" / "last").state_dict()
    for name, tensor in load_transformer(weights).state_dict().items():
        assert trained[name].dtype == torch.float32
        assert torch.equal(trained[name], tensor.float())


@pytest.mark.slow
def test_resuming_and_a_warm_start_do_not_read_them(config, weights, tmp_path, loaded):
    assert fit(config, "--trainer.max_steps", 2) == 0
    assert fit(config, "--trainer.max_steps", 4) == 2  # it was not resumed
    whole = tmp_path / "whole"
    assert fit(config, "--trainer.default_root_dir", whole) == 0
    weights.rename(weights.with_name("moved"))
    loaded.clear()

    run = tmp_path / "run"
    assert fit(config, "--ckpt_path", run) == 0
    assert loaded == []
    assert (run / "steps.jsonl").read_text() == (whole / "steps.jsonl").read_text()

    other = ["--model.stage", "next", "--trainer.default_root_dir", tmp_path / "next", "--trainer.max_steps", 1]
    assert fit(config, "--ckpt_path", run, *other) == 0
    assert loaded == [str((run / "checkpoints" / "last").resolve())]


def test_nothing_is_allocated_for_weights_that_follow(config, monkeypatch):
    seen = []
    monkeypatch.setattr(TrainingCommand, "_run_subcommand", lambda self, _: seen.append(self.model))
    TrainingCommand(["fit", "-c", str(config)])
    (model,) = seen
    assert model.on_meta
    assert model.transformer.gradient_checkpointing
    model.allocate()
    assert not model.on_meta


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.start.pretrained", "put HunyuanVideo's text-to-video weights there"),
        ("data.init_args.manifest", "write one row per pair of clips there"),
        ("data.init_args.val_manifest", "write one row per pair of clips there"),
    ],
)
def test_a_missing_path_is_told_before_anything_is_built(config, option, told, capsys, monkeypatch):
    monkeypatch.setattr(TrainingCommand, "instantiate_classes", lambda self: pytest.fail("classes were built"))
    assert fit(config, f"--{option}", "nowhere/file") == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert f"{option} is nowhere/file, which does not exist: {told}" in message
    assert f"or correct {option}" in message


def test_a_missing_path_from_a_variable_names_the_variable():
    config = {"variables": {"weights": "nowhere"}, "model": {"start": {"pretrained": "nowhere/transformer"}}}
    with pytest.raises(FileNotFoundError, match=r"say where it is in variables\.weights or the environment"):
        check_paths(config, has_checkpoint=False)
    check_paths(config, has_checkpoint=True)


def test_variables_are_not_set_where_they_have_no_effect(config, capsys):
    assert fit(config, "--variables.weights", "x") == 2
    assert "set in the YAML" in capsys.readouterr().err


def test_checkpointed_blocks_give_the_same_losses(config, tmp_path):
    assert fit(config) == 0
    plain = tmp_path / "plain"
    assert fit(config, "--model.checkpointing.mode", "none", "--trainer.default_root_dir", plain) == 0
    assert (plain / "steps.jsonl").read_text() == (tmp_path / "run" / "steps.jsonl").read_text()
