"""A curriculum of three tiny stages, and what its runs leave."""

import shutil

import yaml

from icve.cli.main import main
from icve.models.loading import load_transformer
from icve.training.run.curriculum_record import Record
from tests.training.runs import steps

NAMES = ("clips", "more_clips", "edits")
STEPS = {"clips": 4, "more_clips": 6, "edits": 3}
EMA = "icve.training.callbacks.ema.EMA"
ULYSSES = "icve.training.distributed.strategies.DDPUlyssesStrategy"
TIME_LIMIT = 240


def stage_settings(name):
    """What the stages of the tests set otherwise, as parts of the tiny configuration."""
    return {
        "clips": {},
        "more_clips": {
            "model": {"optimizer": {"init_args": {"lr": 0.003}}, "schedule": {"warmup_steps": 2, "shape": "cosine"}}
        },
        "edits": {
            "model": {"objective": {"init_args": {"edit_weight": 3.0}}},
            "trainer": {
                "accumulate_grad_batches": 2,
                "callbacks": [{"class_path": EMA, "init_args": {"decay": 0.5, "warmup": False}}],
            },
        },
    }[name]


def stage_data(config, name, **options):
    """Configuration of a stage's data module."""
    data = yaml.safe_load(config)["data"]
    data["init_args"] |= {"batch_size": 1 if name == "edits" else 2, **options}
    kind = (
        "icve.data.paired_edits.PairedEditsDataModule"
        if name == "edits"
        else "icve.data.unpaired_clips.UnpairedClipsDataModule"
    )
    return {**data, "class_path": kind}


def fit(path, run, *arguments):
    """Exit status of `icve fit`."""
    return main(["fit", "-c", str(path), "--trainer.default_root_dir", str(run), *map(str, arguments)])


def state(run, name):
    """A stage's last averaged weights by name, however many files hold them."""
    return load_transformer(run / name / "checkpoints" / "last").state_dict()


def weights(run, name):
    """The bytes of those."""
    return {weight: tensor.numpy().tobytes() for weight, tensor in state(run, name).items()}


def assert_equal_runs(run, truth, names=NAMES):
    """Losses, samples and weights of the stages are the same, bit for bit."""
    for name in names:
        assert steps(run / name) == steps(truth / name), name
        assert weights(run, name) == weights(truth, name), name


def events(run):
    """What RUN/curriculum.jsonl tells, without figures."""
    return [(e["event"], e["stage"], e["step"], e["run_step"]) for e in Record(run).entries()]


def cut(run, lines, without, checkpoints=None):
    """Leave of a run what a kill would have: so many events, and neither these stages nor these checkpoints."""
    file = run / Record.FILE
    kept = file.read_text().splitlines(keepends=True)[:lines]
    file.write_text("".join(kept))
    for name in without:
        shutil.rmtree(run / name)
    for name in checkpoints or ():
        shutil.rmtree(run / name)


def told_at_the_end(stage, **options):
    callback = {"class_path": "tests.training.curriculum.told.ToldAtTheEnd", "init_args": {"stage": stage, **options}}
    return {"settings": {"trainer": {"callbacks": [callback]}}}
