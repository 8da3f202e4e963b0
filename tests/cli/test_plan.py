"""`icve plan` as a user types it; what it counts is tested in tests/models, its layouts in tests/preflight."""

import json
import re

import pytest
import yaml

from icve.cli.main import main
from icve.cli.plan import build_parser
from icve.training.run.configured_parts import configured_parts
from tests.training.conftest import TINY_YAML


@pytest.fixture
def plan(tmp_path, capsys):
    """Run `icve plan` on the tiny configuration: (exit status, output, error)."""

    tiny_yaml = tmp_path / "tiny.yaml"
    tiny_yaml.write_text(TINY_YAML.format(run="unused", manifest="not-there.parquet"))

    def run(*arguments, gpus=4, memory=80):
        words = ["plan", "-c", tiny_yaml, "--gpus", *(gpus if isinstance(gpus, list) else [gpus])]
        status = main([*map(str, [*words, "--gpu_memory", memory, *arguments])])
        return status, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_json_has_every_layout_and_its_parts(plan):
    status, out, _ = plan("--json", "--data.init_args.batch_size", 8)
    assert status == 0
    told = json.loads(out)
    assert told["batch"] == 8
    assert told["steps"] == 4
    assert told["buckets"][0]["tokens"] == 2 * 2 * 2 * 2 + 256  # 2 latent frames of 4x4, patches of 2x2, twice; text
    ranks = {layout["sequence_parallel"] for layout in told["layouts"]}
    assert ranks == {1, 2}  # two heads
    for layout in told["layouts"]:
        for part in layout["memory"]:
            assert sum(value for name, value in part.items() if name != "total") == pytest.approx(part["total"])
        if layout["checkpointing"]["every"] > 1:
            continue
        sized = told["buckets"][0][layout["checkpointing"]["mode"]]
        flops = 8 * (sized["forward"] + sized["backward"] + sized["recompute"])
        assert layout["seconds"][0] == pytest.approx(flops / (4 * 989e12 * 0.4))
        assert layout["encoding"] == [0]  # the codec without weights
        assert layout["samples"] * layout["micro_steps"] * 4 // layout["sequence_parallel"] == 8
    assert told["chosen"]["fits"]
    assert told["chosen"]["checkpointing"]["mode"] == "none"  # computing again is slower
    assert told["gpu_days"] == pytest.approx(4 * told["days"])
    assert told["days"] == pytest.approx(4 * told["chosen"]["step_seconds"] / 86400)
    assert told["samples_per_second"] == pytest.approx(8 / told["chosen"]["step_seconds"])


def test_tables_say_what_fits_and_how_to_run_it(plan):
    status, out, _ = plan("--data.init_args.batch_size", 8, memory=5)
    assert status == 0
    assert "Stage tiny" in out
    assert "| 32x32x5 |" in out
    assert "is the fastest that fits" in out
    assert re.search(r"Data: [\d.e+]+ samples per second, [\d.e+]+ samples per second on each node\.", out)
    (settings,) = [line for line in out.splitlines() if line.startswith("Settings: ")]
    assert "--data.init_args.batch_size 8 --trainer.accumulate_grad_batches 1" in settings
    assert "--trainer.strategy.init_args.sequence_parallel_size 1" in settings


def test_what_does_not_fit_says_by_how_much_and_what_helps(plan):
    status, out, _ = plan("--reserve", 1.0, "--data.init_args.batch_size", 8, memory=0.5)
    assert status == 1
    assert "does not fit, by 0.5 GiB" in out
    assert "No layout fits. It would with GPUs with at least 1.0 GiB" in out
    status, out, _ = plan("--json", "--reserve", 1.0, "--data.init_args.batch_size", 8, memory=0.5)
    told = json.loads(out)
    assert told["chosen"] is None
    least = min(max(part["total"] for part in layout["memory"]) for layout in told["layouts"])
    assert least > 2**29
    assert all(layout["missing"] > 0 for layout in told["layouts"])
    assert told["remedies"]


@pytest.mark.slow
def test_more_gpus_or_another_layout_are_proposed(plan):
    wide = ["--model.transformer.init_args.num_attention_heads", 16, "--model.transformer.init_args.num_layers", 12]
    wide += ["--model.transformer.init_args.attention_head_dim", 64, "--data.init_args.batch_size", 64]
    wide += ["--model.transformer.init_args.rope_axes_dim", "[8,28,28]", "--reserve", 0]
    status, out, _ = plan(*wide, gpus=2, memory=6)
    assert status == 0
    first = next(line for line in out.splitlines() if "does not fit, by" in line)
    assert first.startswith("ddp")
    assert "change to zero" in first
    status, out, _ = plan(*wide, gpus=1, memory=6)
    assert status == 1
    assert "2 GPUs (zero" in out


def test_a_batch_that_cannot_be_divided_uses_fewer_gpus(plan):
    status, out, _ = plan("--data.init_args.batch_size", 3, gpus=4)
    assert status == 0
    assert "A batch of 3 cannot be divided among 4 GPUs" in out
    assert "3 are used" in out


def test_numbers_of_gpus_are_compared(plan):
    status, out, _ = plan("--data.init_args.batch_size", 8, gpus=[1, 4, 16, 64])
    assert status == 0
    rows = [line.split("|")[2].strip() for line in out.splitlines()[2:]]
    assert rows == ["1", "4", "16", "16 of 64"]


@pytest.mark.slow
def test_strategies_and_precision_are_respected(plan):
    _, out, _ = plan("--json", "--strategy", "fsdp", "deepspeed_stage_2")
    assert {layout["strategy"] for layout in json.loads(out)["layouts"]} == {"zero2", "zero3"}
    _, out, _ = plan("--json", "--trainer.precision", "bf16-mixed")
    assert json.loads(out)["model"]["weight"] == 2
    assert json.loads(out)["model"]["mixed"]
    assert json.loads(out)["model"]["ema"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--strategy", "zero4"], "there is no strategy 'zero4'"),
        (["--mfu", "40"], "at most 1"),
        (["--mfu", "nan"], "--mfu must be positive"),
        (["--tflops", "-1"], "--tflops must be positive"),
        (["--data.init_args.bucketts", "3"], "did you mean 'buckets'?"),
        (["--data.init_args.buckets", "[[30, 32, 5]]"], "multiples of 16"),
        (["--trainer.max_steps", "-1"], "set trainer.max_steps"),
        (["--model.transformer", "torch.nn.Identity"], "Only transformers of a model family"),
    ],
)
def test_mistakes_are_one_sentence(plan, arguments, told):
    status, out, error = plan(*arguments)
    assert status == 2
    assert out == ""
    (line,) = error.strip().splitlines()
    assert line.startswith("icve plan: error: ")
    assert told in line


@pytest.mark.parametrize("only", [[], ["--model.stage", "sft"]])
def test_a_curriculum_is_none_of_its_stages(repository, capsys, only):
    path = str(repository / "configs" / "curriculum.yaml")
    told = "The configuration trains several stages: use the configuration of one of them, e.g. configs/sft.yaml."
    for command in (["plan", "--gpus", "64", "--gpu_memory", "80"], ["inspect-data", "clips.jsonl"]):
        assert main([*command, "-c", path, *only]) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1] == f"icve {command[0]}: error: {told}"
    with pytest.raises(ValueError, match=re.escape(told)):  # icve encode's
        configured_parts(["-c", path, *only])


def test_help_says_what_is_not_counted():
    assert "Not counted" in build_parser().format_help()


@pytest.mark.slow
def test_neither_weights_nor_data_are_needed(repository, capsys):
    config = repository / "configs" / "debug" / "pretrain_240p.yaml"
    assert main(["plan", "-c", str(config), "--gpus", "2", "--gpu_memory", "80", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 14e9 < told["model"]["frozen"] < 16e9  # where the folders are not there, the released encoders are meant


@pytest.mark.slow
def test_the_papers_stages(repository, capsys):
    """What is known about the 13B model: 206 GB of state and weights do not fit on one GPU, and eight suffice."""
    for name, batch, steps in (("pretrain_240p", 32, 30_000), ("pretrain_480p", 32, 10_000), ("sft", 12, 12_000)):
        words = ["plan", "-c", str(repository / "configs" / f"{name}.yaml"), "--gpu_memory", "80", "--json"]
        assert main([*words, "--gpus", "1"]) == 1
        one = json.loads(capsys.readouterr().out)
        assert (one["batch"], one["steps"]) == (batch, steps)
        assert one["layouts"][0]["missing"] > 120 * 2**30
        assert main([*words, "--gpus", "8"]) == 0
        eight = json.loads(capsys.readouterr().out)
        assert eight["chosen"]["strategy"] in ("zero2", "zero3")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "billions"), [("1.3b", 1.42), ("5b", 5.0), ("14b", 14.29)])
def test_wans_stages_fit_into_the_gpus_that_they_are_configured_for(repository, capsys, size, billions):
    path = repository / "configs" / "wan" / f"pretrain_240p_{size}.yaml"
    assert main(["plan", "-c", str(path), "--gpus", "8", "--gpu_memory", "80", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"]["parameters"] / 1e9 == pytest.approx(billions, abs=0.01)
    trainer = yaml.safe_load(path.read_text())["trainer"]
    strategy = trainer["strategy"]["init_args"]
    layouts = [layout for layout in told["layouts"] if layout["strategy"] == f"zero{strategy['stage']}"]
    layouts = [layout for layout in layouts if layout["checkpointing"] == {"mode": "full", "every": 1}]
    (own,) = [one for one in layouts if one["sequence_parallel"] == strategy["sequence_parallel_size"]]
    assert own["fits"]
    assert own["micro_steps"] <= trainer["accumulate_grad_batches"]  # no more at once than fits


@pytest.mark.slow
def test_an_adapter_is_planned_with_its_own_state(repository, capsys):
    path = repository / "configs" / "wan" / "sft_lora_1.3b.yaml"
    assert main(["plan", "-c", str(path), "--gpus", "1", "--gpu_memory", "24", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["adapted"] == 2 * 1_418_996_800
    assert 0.02 < model["parameters"] / 1_418_996_800 < 0.05
