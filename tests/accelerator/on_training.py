"""Training on the simulated accelerator: the CPU's results, and where a step waits for the device."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.ema import EMA
from icve.training.callbacks.encode_ahead import EncodeAhead
from icve.training.callbacks.monitor import StepProgressBar, TrainingMonitor
from icve.training.callbacks.nonfinite import SkipNonFinite
from icve.training.callbacks.stop_signal import StopOnSignal
from icve.training.optimization.optimizers import MuonAdamW
from tests.accelerator.device import table, waits, watch
from tests.training.conftest import tiny_transformer, whole_wan


class Parts(Callback):
    """Cuts what a watch sees into the parts of every micro-batch."""

    def __init__(self, seen):
        self.seen, self.marks = seen, []

    def note(self, part):
        self.marks.append((part, len(self.seen.events)))

    def on_train_batch_start(self, *args):
        self.note("forward")

    def on_before_backward(self, *args):
        self.note("backward")

    def on_after_backward(self, *args):
        self.note("step")

    def on_train_end(self, *args):
        self.note("end")

    def waits(self):
        """Of every micro-batch: the waits of its parts. The transfer of the next batch belongs to "step"."""
        found = []
        for (part, start), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            if part == "forward":
                found.append({})
            found[-1][part] = waits(self.seen.events[start:end])
        return found


def losses_of(make_trainer, make_losses, module, data, on, steps=4, callbacks=(), **options):
    losses, ema, guard = make_losses(), EMA(), SkipNonFinite()
    make_trainer(steps, [ema, guard, losses, *callbacks], on=on, **options).fit(module, datamodule=data)
    shadow = {name: tensor.cpu() for name, tensor in ema.shadow.items()}
    weights = {name: tensor.cpu() for name, tensor in module.transformer.state_dict().items()}
    return [line[0] for line in losses.lines], weights, shadow, losses.validated


CASES = {
    "MuonAdamW": {},
    "AdamW": {"module": {"optimizer": partial(torch.optim.AdamW, lr=1e-2)}},
    "fused AdamW": {"module": {"optimizer": partial(torch.optim.AdamW, lr=1e-2, fused=True)}},
    "accumulation": {"accumulate_grad_batches": 2},
    "mask and weights": {"data": {"mask": True}, "module": {"edit_weight": 3.0, "pixel_weight": 1.0}},
    "region of the latents": {"module": {"edit_weight": 3.0}},
    "guidance embedding": {"config": {"guidance_embeds": True}},
    "static context": {"static": True},
    "validation": {"data": {"validation": 2}, "val_check_interval": 2},
    "a batch that is not finite": {"data": {"poison": (1,)}},
    "Wan": {"wan": True},
    "Wan with mask and weights": {"wan": True, "data": {"mask": True}, "module": {"edit_weight": 3.0}},
    "encoding ahead": {"ahead": True, "data": {"mask": True, "validation": 2}, "val_check_interval": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_training_gives_what_the_cpu_gives(make_module, make_trainer, make_data, make_losses, tiny_wan, case):
    options = dict(CASES[case])
    data, config, own = (options.pop(name, {}) for name in ("data", "config", "module"))
    static, ahead = options.pop("static", False), options.pop("ahead", False)
    wan = options.pop("wan", False)
    results = []
    for on in ("cpu", "simacc"):
        parts = whole_wan(tiny_wan[0]) if wan else {"transformer": tiny_transformer(0, **config)}
        module = make_module(**parts, **own)
        if static:
            module.transformer.rule = "static_context"
        callbacks = [EncodeAhead()] if ahead and on == "simacc" else []
        results.append(
            losses_of(make_trainer, make_losses, module, make_data(**data), on, callbacks=callbacks, **options)
        )
    (losses, weights, shadow, validated), (ours, own_weights, own_shadow, own_validated) = results
    assert len(ours) == 4 * options.get("accumulate_grad_batches", 1)
    assert ours == pytest.approx(losses, rel=1e-5, nan_ok=case == "a batch that is not finite")
    # AdamW makes a whole step, 1e-2, of a gradient that is nearly rounding error.
    torch.testing.assert_close(own_weights, weights, rtol=0, atol=1e-3)
    torch.testing.assert_close(own_shadow, shadow, rtol=0, atol=1e-3)
    assert [step for step, _ in own_validated] == [step for step, _ in validated]
    assert [loss for _, loss in own_validated] == pytest.approx([loss for _, loss in validated], rel=1e-5)
    assert bool(validated) == (case in ("validation", "encoding ahead"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_training_in_16_bits_is_near_the_cpus(make_module, make_trainer, make_data, make_losses, precision):
    on_cpu, ours = (
        losses_of(make_trainer, make_losses, make_module(), make_data(), on, precision=precision)[0]
        for on in ("cpu", "simacc")
    )
    assert ours == pytest.approx(on_cpu, rel=5e-3)


@pytest.mark.parametrize(
    ("optimizer", "ahead", "wan"),
    [
        (MuonAdamW, [], False),
        (torch.optim.AdamW, [], False),
        (torch.optim.AdamW, [EncodeAhead], False),
        (MuonAdamW, [], True),
        (torch.optim.AdamW, [EncodeAhead], True),
    ],
)
def test_a_step_waits_for_the_device_once(make_module, make_trainer, make_data, tiny_wan, optimizer, ahead, wan):
    """Never between forward and backward; every third step reports."""
    with watch() as seen:
        parts = Parts(seen)
        callbacks = [
            parts,
            *(kind() for kind in ahead),
            EMA(),
            SkipNonFinite(),
            TrainingMonitor(),
            StopOnSignal(),
            StepProgressBar(),
        ]
        whole = whole_wan(tiny_wan[0]) if wan else {}
        module = make_module(**whole, optimizer=partial(optimizer, lr=1e-2))
        trainer = make_trainer(
            9, callbacks, accumulate_grad_batches=2, log_every_n_steps=3, enable_progress_bar=True, precision="32"
        )
        trainer.fit(module, datamodule=make_data(mask=True))
    found = parts.waits()[6:]  # the first steps fill caches and the optimizer's state
    assert len(found) == 12
    for number, waits_of in enumerate(found):
        assert not waits_of["forward"], table(waits_of["forward"])
        assert not waits_of["backward"], table(waits_of["backward"])
        places = sorted(event.place.split(":")[0].rsplit("/", 1)[-1] for event in waits_of["step"])
        expected = []
        if number % 2:  # the step's last micro-batch
            expected = ["together.py"]
        if number % 6 == 5:  # and it reports: gradient norms, the losses of the micro-batches, the last loss
            expected = ["module.py", "monitor.py", "monitor.py", "together.py"]
        assert places == expected, table(waits_of["step"])


def test_noise_and_levels_come_through_pinned_memory(make_module, make_trainer, make_data):
    with watch() as seen:
        parts = Parts(seen)
        make_trainer(3, [parts]).fit(make_module(), datamodule=make_data())
    starts = [mark for part, mark in parts.marks if part == "forward"]
    kinds = {event.kind for event in seen.events[starts[-1] :] if event.kind.startswith("h2d")}
    assert kinds == {"h2d-async"}


def test_validation_waits_once(make_module, make_trainer, make_data):
    """However many batches it has: at its end, for the number of samples; logging reads the figures."""
    counts = []
    for batches in (2, 4):
        module = make_module()
        with watch() as seen:
            make_trainer(1).validate(module, datamodule=make_data(validation=batches), verbose=False)
        counts.append(len(waits(seen.events)))
    assert counts[0] == counts[1], counts


def test_a_checkpoint_that_is_written_meanwhile_is_copied_through_pinned_memory(make_module, make_trainer, make_data):
    checkpoints = Checkpoints(2, asynchronous=True)
    with watch() as seen:
        trainer = make_trainer(4, [EMA(), checkpoints])
        trainer.fit(make_module(), datamodule=make_data())
    copies = [event for event in seen.events if "/snapshot.py" in event.place and event.kind != "sync"]
    assert {event.kind for event in copies} == {"d2h-async"}, table(copies)
    saved, _ = trainer.strategy.checkpoint_io.load_parts(checkpoints.newest)
    weights = trainer.strategy.checkpoint_io.load_checkpoint(checkpoints.newest)["state_dict"]
    assert saved["global_step"] == 4
    for name, value in trainer.lightning_module.transformer.state_dict().items():
        assert torch.equal(weights[f"transformer.{name}"], value.cpu())
