from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from icve.evaluation.curves import read_curves
from icve.models import sequence_parallel
from icve.training.callbacks import loop_times, monitor
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.flops import TrainingFlops
from icve.training.callbacks.monitor import StepProgressBar, TrainingMonitor, keep_steps_before
from icve.training.callbacks.nonfinite import SkipNonFinite, TrainingDiverged
from icve.training.optimization.schedule import Schedule
from tests.training.conftest import tiny_transformer
from tests.training.runs import steps


def test_figures_in_tensorboard(make_module, make_trainer, make_data, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    callbacks = [TrainingMonitor(), SkipNonFinite()]
    module, data = make_module(schedule=Schedule(warmup_steps=4)), make_data(validation=1)
    make_trainer(6, callbacks, logger=logger, log_every_n_steps=2, val_check_interval=6, accumulate_grad_batches=2).fit(
        module, datamodule=data
    )
    curves = read_curves(tmp_path)
    names = {"loss", "learning_rate_muon", "learning_rate_adamw", "gradient_norm", "skipped_steps"}
    names |= {"samples_per_second", "tokens_per_second", "data_wait_share", "peak_resident_gib"}
    parts = ("embeddings", "transformer_blocks", "single_transformer_blocks", "output")
    names |= {f"gradient_norm_{part}" for part in parts}
    for name in names:
        assert [step for step, _ in curves[f"train/{name}"]] == [1, 3, 5], name
    assert [value for _, value in curves["train/learning_rate_muon"]] == pytest.approx([0.005, 0.01, 0.01])
    norms = zip(*(curves[f"train/gradient_norm_{part}"] for part in parts), strict=True)
    assert [sum(norm**2 for _, norm in step) ** 0.5 for step in norms] == pytest.approx(
        [norm for _, norm in curves["train/gradient_norm"]]
    )
    assert all(0.05 < gib < 1000 for _, gib in curves["train/peak_resident_gib"])  # torch alone takes more
    rates = zip(curves["train/tokens_per_second"], curves["train/samples_per_second"], strict=True)
    for (_, tokens), (_, samples) in rates:
        # 2 x 2 video tokens and one to six words a sample
        assert 5 <= tokens / samples <= 10
    assert {name for name in curves if name.startswith("val/loss_sigma_")} == {
        f"val/loss_sigma_{sigma}" for sigma in (0.1, 0.3, 0.5, 0.7, 0.9)
    }


def test_the_share_of_the_time_that_training_waits_for_data(
    make_module, make_trainer, make_data, tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=0.0)
    for module in (monitor, loop_times):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def taking(seconds, function):
        def slow(*args):
            clock.now += seconds
            return function(*args)

        return slow

    data, module, save = make_data(validation=1), make_module(), Checkpoints(every_n_steps=1)
    data.batch = taking(3.0, data.batch)
    module.training_step = taking(1.0, module.training_step)
    # Neither waiting nor training.
    module.on_save_checkpoint = taking(50.0, module.on_save_checkpoint)
    module.validation_step = taking(70.0, module.validation_step)
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    options = {"logger": logger, "log_every_n_steps": 2, "val_check_interval": 2}
    make_trainer(6, [TrainingMonitor(), save], **options).fit(module, datamodule=data)
    assert [share for _, share in read_curves(tmp_path)["train/data_wait_share"]] == pytest.approx([3 / 4] * 3)


def test_the_loss_of_each_bucket_and_the_share_of_the_peak(make_module, make_trainer, make_data, tmp_path):
    class TwoBuckets(make_data):
        def batch(self, number):
            self.frames = (5, 9)[number % 2]
            return super().batch(number)

    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    options = {"logger": logger, "log_every_n_steps": 2, "accumulate_grad_batches": 4}
    make_trainer(4, [TrainingMonitor(peak_tflops=1e-3)], **options).fit(make_module(), datamodule=TwoBuckets())
    losses = [line["loss"] for line in steps(tmp_path)]
    curves = read_curves(tmp_path)
    for bucket, first in (("16x16x5", 0), ("16x16x9", 1)):
        expected = [sum(losses[start + first : start + 8 : 2]) / 4 for start in (0, 8)]
        assert [value for _, value in curves[f"train/loss_{bucket}"]] == pytest.approx(expected)
    assert "train/peak_memory_gib" not in curves  # of CUDA's allocator
    rates = (curves[f"train/{name}"] for name in ("mfu", "tflops_per_device", "samples_per_second"))
    for (_, share), (_, tflops), (_, samples) in zip(*rates, strict=True):
        assert share == pytest.approx(tflops / 1e-3)
        assert 1e-7 < tflops / samples < 1e-5  # a sample is a few MFLOP


def test_the_share_of_the_peak_counts_all_tokens_of_a_shared_sample(monkeypatch):
    class Two:
        def size(self):
            return 2

        def rank(self):
            return 0

    model = tiny_transformer()
    parts = type(model), model.config, model.patch
    alone = TrainingFlops(*parts)((2, 4, 4), 40)
    monkeypatch.setattr(sequence_parallel, "_group", Two())
    assert TrainingFlops(*parts)((2, 4, 4), 40) == alone


def test_a_peak_must_be_positive():
    with pytest.raises(ValueError, match="peak_tflops must be positive"):
        TrainingMonitor(peak_tflops=0)


def test_every_micro_batch_is_written_down(make_module, make_trainer, make_data, make_losses, tmp_path):
    losses, data = make_losses(), make_data()
    make_trainer(2, [TrainingMonitor(), losses], accumulate_grad_batches=3).fit(make_module(), datamodule=data)
    lines = steps(tmp_path)
    assert [line["step"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [line["ids"] for line in lines] == [data.batch(number)["id"] for number in range(6)]
    assert [line["loss"] for line in lines] == [loss * 3 for loss, _, _ in losses.lines]


def test_nothing_is_written_between_reports_but_before_a_checkpoint(make_module, make_trainer, make_data, tmp_path):
    module, seen = make_module(), []
    module.on_train_batch_end = lambda *args: seen.append(len(steps(tmp_path)))
    callbacks = [TrainingMonitor(), Checkpoints(every_n_steps=3)]
    make_trainer(8, callbacks, log_every_n_steps=5).fit(module, datamodule=make_data())
    assert seen == [0, 0, 3, 3, 5, 6, 6, 8]  # the checkpoints are of the steps 3, 6 and 8


def test_a_run_that_diverges_leaves_its_last_steps_on_record(make_module, make_trainer, make_data, tmp_path):
    trainer = make_trainer(9, [TrainingMonitor(), SkipNonFinite(patience=2)], log_every_n_steps=50)
    with pytest.raises(TrainingDiverged):
        trainer.fit(make_module(), datamodule=make_data(poison=[3, 4]))
    assert [line["step"] for line in steps(tmp_path)] == [0, 1, 2, 3]


def test_steps_that_are_repeated_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "run" / "steps.jsonl"
    keep_steps_before(path, 3)  # nothing there yet
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4')
    keep_steps_before(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_bar_counts_the_batches_of_the_stage(make_module, make_trainer, make_data):
    bar = StepProgressBar()
    ends = []
    module = make_module(stage="my_stage")
    module.on_train_end = lambda: ends.append((bar.train_progress_bar.n, bar.train_progress_bar.total))
    trainer = make_trainer(3, [bar], accumulate_grad_batches=2, enable_progress_bar=True)
    trainer.fit(module, datamodule=make_data())
    assert ends == [(6, 6)]


def test_the_bar_of_a_resumed_run_goes_on(make_module, make_trainer, make_data, tmp_path):
    save = Checkpoints(every_n_steps=1, keep_last=2)
    first = make_trainer(2, [save], folder=tmp_path / "run")
    first.fit(make_module(), datamodule=make_data())
    bar, shown = StepProgressBar(), []
    module = make_module()
    module.on_train_start = lambda: shown.append(
        (bar.train_progress_bar.initial, bar.train_progress_bar.total, bar.train_progress_bar.desc)
    )
    data = make_data()
    trainer = make_trainer(
        4, [bar, Checkpoints(every_n_steps=1, keep_last=2)], tmp_path / "run", enable_progress_bar=True
    )
    trainer.fit(module, datamodule=data, ckpt_path=tmp_path / "run" / "checkpoints" / "step-000002")
    assert shown == [(2, 4, "tiny: ")]
