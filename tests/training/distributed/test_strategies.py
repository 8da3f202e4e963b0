"""Training in several processes equals training in one."""

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn

from icve.training.distributed.strategies import DDPUlyssesStrategy, DeepSpeedUlyssesStrategy, FSDPUlyssesStrategy
from tests.training.conftest import tiny_transformer
from tests.training.runs import fit, run_in_turn, steps, strategy

DDP = "DDPUlyssesStrategy"


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
def test_two_processes_that_share_tokens_train_as_one(tiny_yaml, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    alone = fit(tiny_yaml, whole)
    # Stopped in the middle and resumed, as a job that is killed; then each has samples of its own.
    told = fit(tiny_yaml, parts, *strategy(DDP, 2, 2), "--trainer.max_steps=2")
    assert told.count("rows used") == alone.count("rows used") > 0
    fit(tiny_yaml, parts, *strategy(DDP, 2, 1), f"--ckpt_path={parts}")
    one, two = steps(whole), steps(parts)
    assert [line["ids"] for line in one] == [line["ids"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
def test_optimizers_of_shared_weights_resume_as_uninterrupted(tiny_yaml, tmp_path):
    """A fused one counts steps on the device; ZeRO 1 has in bfloat16 another class than the other stages."""
    zero = [*strategy("DeepSpeedUlyssesStrategy", 2, 1, stage=1), "--trainer.precision=bf16-mixed"]
    fsdp, fused = strategy("FSDPUlyssesStrategy", 2, 1), "--model.optimizer.fused=true"

    def command(run, *options):
        adamw = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.01"]
        return ["fit", "-c", tiny_yaml, f"--trainer.default_root_dir={tmp_path / run}", *adamw, *options]

    def resumed(run, *options):
        first, again = "--trainer.max_steps=2", f"--ckpt_path={tmp_path / run}"
        return [command(run, *options, first), command(run, *options, again)]

    commands = [command("plain", *fsdp)]
    for name, options in {"fused": [*fsdp, fused], "zero1": [*zero, "--trainer.accumulate_grad_batches=2"]}.items():
        commands += [command(name, *options), *resumed(f"{name}-parts", *options)]
    run_in_turn(commands, 2, tmp_path, seconds=350)

    def seen(run):
        return [(line["ids"], line["loss"]) for line in steps(tmp_path / run)]

    assert seen("fused-parts") == seen("fused")
    assert seen("zero1-parts") == seen("zero1")
    plain, fused = ([loss for _, loss in seen(name)] for name in ("plain", "fused"))
    assert fused == pytest.approx(plain, rel=1e-5)
    assert len(set(fused)) == len(fused) == 4


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(250)
def test_processes_that_share_tokens_encode_ahead(tiny_yaml, tmp_path):
    """Two micro-batches a step and a validation in between; stopped and resumed too."""
    ahead = "--trainer.callbacks+=icve.training.callbacks.encode_ahead.EncodeAhead"
    options = [*strategy(DDP, 2, 2), "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=3"]

    def command(run, *more):
        return ["fit", "-c", tiny_yaml, f"--trainer.default_root_dir={tmp_path / run}", *options, *more]

    stopped = [
        command("parts", ahead, "--trainer.max_steps=2"),
        command("parts", ahead, f"--ckpt_path={tmp_path / 'parts'}"),
    ]
    run_in_turn([command("plain"), command("ahead", ahead), *stopped], 2, tmp_path, seconds=220)
    plain, *others = (
        [(line["ids"], line["loss"]) for line in steps(tmp_path / run)] for run in ("plain", "ahead", "parts")
    )
    assert len(plain) == 8
    assert others == [plain, plain]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bf16": {"enabled": True}}, {"grad_accum_dtype": "fp32"}),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "bf16"}}, {"grad_accum_dtype": "bf16"}),
        ({"fp16": {"enabled": True}}, None),  # scaled losses are DeepSpeed's own business
        ({}, None),
    ],
)
def test_zero_sums_the_gradients_of_bfloat16_in_float32(given, expected, monkeypatch):
    monkeypatch.setattr(DeepSpeedStrategy, "_format_config", lambda self: None)
    sharing = DeepSpeedUlyssesStrategy(config=given)
    sharing._format_config()
    assert sharing.config.get("data_types") == expected


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_what_does_not_fit_is_said_at_once(tiny_yaml, tmp_path):
    told = fit(tiny_yaml, tmp_path / "run", *strategy(DDP, 3, 2), status=2)
    assert "3 processes cannot be grouped by 2" in told
    told = fit(tiny_yaml, tmp_path / "run", *strategy(DDP, 3, 3), status=2)
    assert "2 attention heads cannot be shared by 3 processes" in told


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("FSDPUlyssesStrategy", [], "MuonAdamW updates whole matrices, and FSDPUlyssesStrategy gives every process"),
        ("DeepSpeedUlyssesStrategy", ["--model.optimizer=torch.optim.Adagrad"], "DeepSpeed replaces Adagrad by one"),
        (
            DDP,
            ["--model.start.lora.dropout=0.1", "--model.start.pretrained=WEIGHTS"],
            "drop out different parts of its text: set model.start.lora.dropout to 0",
        ),
    ],
)
def test_what_cannot_be_shared_is_said_at_once(tiny_yaml, tmp_path, kind, options, message):
    tiny_transformer().save_pretrained(tmp_path / "weights")
    options = [option.replace("WEIGHTS", str(tmp_path / "weights")) for option in options]
    told = fit(tiny_yaml, tmp_path / "run", *strategy(kind, 2, 2), *options, status=2)
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize(("what", "place"), [(TrainerFn.FITTING, "cpu"), (TrainerFn.VALIDATING, "meta")])
def test_fsdp_places_a_model_that_it_does_not_shard(make_module, make_trainer, what, place):
    module, trainer = make_module(), make_trainer(1)
    sharding = FSDPUlyssesStrategy(parallel_devices=[torch.device("meta")])
    trainer.state.fn, module.trainer = what, trainer
    sharding.connect(module)
    sharding.model_to_device()
    assert {parameter.device.type for parameter in module.parameters()} == {place}


def test_the_size_must_be_positive():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        DDPUlyssesStrategy(sequence_parallel_size=0)
