"""A curriculum as runs of its stages, one after the other.

A stage is trained by `icve fit` itself, with the curriculum's configuration and the stage's settings in it, in the
folder RUN/STAGE and from the averaged weights of the stage before. A switch is therefore exactly a warm start, and one
run of all stages exactly a run of each by hand: nothing but the weights on disk passes from one to the next.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from icve.models.remote_runs import checkpoints_behind
from icve.models.run_folders import resolve_checkpoint, saved_checkpoints
from icve.models.run_names import LAST
from icve.runtime.atomic import write_text
from icve.runtime.locks import locked
from icve.runtime.storage.remote_path import RemotePath, as_path, is_url
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.stop_signal import SIGNAL, Listening, StopOnSignal, agreed, status
from icve.training.checkpoints.run_url import restore
from icve.training.checkpoints.stage_record import read_stage
from icve.training.lightning_types import parts_of
from icve.training.run.curriculum import CurriculumCallback, Stage
from icve.training.run.curriculum_record import Record
from icve.training.run.paths import check_paths
from icve.training.run.stage_checks import check_batches
from icve.training.validation import validation_figures

CALLBACK = f"{CurriculumCallback.__module__}.{CurriculumCallback.__qualname__}"
CHECKPOINTS = f"{Checkpoints.__module__}.{Checkpoints.__qualname__}"
STOP = f"{StopOnSignal.__module__}.{StopOnSignal.__qualname__}"

Config = Mapping[str, Any]  # of `icve fit`: plain values, as in its YAML


def stages_of(config: Config) -> list[Config]:
    """Stages that a configuration is to train one after the other; none where it trains a single stage.

    A configuration with a curriculum whose `model.stage` is one of the stages trains just that one.
    """
    for callback in config["trainer"].get("callbacks") or []:
        if callback["class_path"] == CALLBACK:
            stages = callback["init_args"]["stages"]
            return [] if config["model"]["stage"] in [stage["name"] for stage in stages] else stages
    return []


def run_folder(config: Config) -> Path:
    """Folder of a configuration's run."""
    return Path(config["trainer"].get("default_root_dir") or Path("runs") / config["model"]["stage"])


def bring_back(config: Config) -> str | None:
    """What `ckpt_path` is on this disk, where it is the run's own URL (the one it uploads to) or a checkpoint there.

    What it names is brought to the run's folder, of a curriculum that of its newest stage. Any other is as it is.

    Raises:
        FileNotFoundError, ValueError, RemoteError: as `icve.training.checkpoints.run_url.restore`.
    """
    path, run = config.get("ckpt_path"), run_folder(config)
    url = next(map(as_path, _uploads_of(config["trainer"])), None)
    if path is None or not is_url(path) or url is None or not as_path(path).is_relative_to(url):
        return path
    assert isinstance(url, RemotePath)
    named = as_path(path).relative_to(url).parts
    if stages := stages_of(config):
        begun = [stage["name"] for stage in stages if checkpoints_behind(url / stage["name"])]
        if begun and not named:
            with locked(run / ".restore.lock"):
                if not (run / Record.FILE).exists() and (url / Record.FILE).exists():
                    write_text(run / Record.FILE, (url / Record.FILE).read_text(encoding="utf-8"))
            restore(url / begun[-1], run / begun[-1])
        return path if named else str(run)
    if named[:1] not in ((), ("checkpoints",)) or len(named) > 2:
        return path
    return str(restore(url, run, named[1] if len(named) == 2 and named[1] != LAST else None))


def _uploads_of(trainer: Config) -> list[str]:
    """The URL that checkpoints are uploaded to, if there is one."""
    written = [callback for callback in trainer.get("callbacks") or [] if callback["class_path"] == CHECKPOINTS]
    return [url for callback in written if (url := (callback.get("init_args") or {}).get("upload"))]


def begins_anew(config: Config) -> bool:
    """Whether `ckpt_path` is the folder of the run itself, of one stage or several, and holds nothing to resume yet.

    So it is at the first start, and where a run was killed before its first checkpoint.

    Raises:
        ValueError: a damaged checkpoint lies there.
    """
    if config.get("resume_mode") != "auto" or not _resumes_itself(config):
        return False
    run = run_folder(config)
    if stages := stages_of(config):
        return not _begun(run, stages)
    if saved_checkpoints(run / "checkpoints"):
        return False
    try:
        resolve_checkpoint(run)  # weights of another kind
    except FileNotFoundError:
        return True
    return False


def _resumes_itself(config: Config) -> bool:
    path = config.get("ckpt_path")
    return path is not None and Path(path).expanduser().resolve() == run_folder(config).resolve()


def _begun(run: Path, stages: list[Config]) -> list[str]:
    """Names of the stages that have a checkpoint."""
    return [stage["name"] for stage in stages if saved_checkpoints(run / stage["name"] / "checkpoints")]


def stage_config(config: Config, stage: Config, run: Path, ckpt_path: str | None) -> dict[str, Any]:
    """Configuration of the run of one stage.

    Args:
        config: of the curriculum.
        stage: one of its stages.
        run: folder of the curriculum.
        ckpt_path: what to resume, or to take the weights of.
    """
    own = merged(config, stage.get("settings") or {})
    own["model"] = {**own["model"], "stage": stage["name"]}
    # The settings have done their work; left there, classes they name would be built.
    done = [{**other, "settings": {}} for other in stages_of(config)]
    own["trainer"] = {
        **own["trainer"],
        "max_steps": stage["steps"],
        "default_root_dir": str(run / stage["name"]),
        "callbacks": merged(own["trainer"]["callbacks"], [{"class_path": CALLBACK, "init_args": {"stages": done}}]),
    }
    for callback in own["trainer"]["callbacks"]:
        if callback["class_path"] == CHECKPOINTS and (url := (callback.get("init_args") or {}).get("upload")):
            callback["init_args"] = {**callback["init_args"], "upload": f"{url.rstrip('/')}/{stage['name']}"}
    return {**own, "ckpt_path": ckpt_path}


def merged(base: Any, change: Any) -> Any:
    """`base` with the values of `change` in place of its own, at any depth.

    Another class_path replaces the whole; in a list of classes, those with the same class_path are merged.
    """
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        if change.get("class_path", base.get("class_path")) != base.get("class_path"):
            return dict(change)
        return {**base, **{key: merged(base.get(key), value) for key, value in change.items()}}
    if isinstance(base, list) and isinstance(change, list) and all(_is_class(entry) for entry in [*base, *change]):
        changes = {entry["class_path"]: entry for entry in change}
        kept = [merged(entry, changes.pop(entry["class_path"], {})) for entry in base]
        return [*kept, *changes.values()]
    return change


def _is_class(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "class_path" in entry


def fit_stages(config: Config, run_stage: Callable[[str, Config], Trainer], check: Callable[[Config], object]) -> int:
    """Train all stages of a curriculum, or those that are left of it where `ckpt_path` is its own run folder.

    Args:
        config: of the curriculum.
        run_stage: trains ("fit") or validates ("validate") with a configuration; returns the trainer that did so.
        check: raises ValueError where a configuration cannot be used.

    Returns:
        The exit status.

    Raises:
        ValueError: nothing is left to train, or another run is in the way.
        FileNotFoundError: a file that one of the stages needs is missing; said before the first stage trains.
    """
    stages = stages_of(config)
    run, previous, resuming = run_folder(config), config.get("ckpt_path"), _resumes_itself(config)
    _check_stages(config, run, check)
    ended = _ended(run, stages, resuming)
    rank_zero_only(write_text)(run / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    # Also while no stage listens itself: a signal is sent once, perhaps when one has just ended.
    with Listening(*_stop_signals(config, run)) as listening:
        for stage in stages:
            folder = run / stage["name"]
            if stage["name"] not in ended:
                begun = resuming and bool(saved_checkpoints(folder / "checkpoints"))
                own = stage_config(config, stage, run, str(folder) if begun else previous)
                own["resume_mode"] = "auto" if resuming or stage is not stages[0] else config["resume_mode"]
                done = _run_to_its_end(own, begun, run_stage)
                signal = agreed(listening.heard)
                if not done or (stage is not stages[-1] and signal):
                    how = "has ended and the run was" if done else "was"
                    rank_zero_info(f"Stage '{stage['name']}' {how} stopped; resume with --ckpt_path {run}.")
                    return status(signal)
            previous = str(folder)
    return 0


def _stop_signals(config: Config, run: Path) -> set[str]:
    """Names of the signals that stop one stage or another."""
    of_stages = (stage_config(config, stage, run, None)["trainer"]["callbacks"] for stage in stages_of(config))
    stopping = [callback for callbacks in of_stages for callback in callbacks if callback["class_path"] == STOP]
    return {(callback.get("init_args") or {}).get("name", SIGNAL) for callback in stopping} or {SIGNAL}


def _run_to_its_end(own: Config, begun: bool, run_stage: Callable[[str, Config], Trainer]) -> bool:
    """Train a stage; whether it ended or was stopped by something else."""
    # Killed after its last checkpoint and before its end was on record.
    saved = read_stage(resolve_checkpoint(own["ckpt_path"])) if begun else None
    trained = saved is not None and saved["step"] >= own["trainer"]["max_steps"]
    trainer = run_stage("validate" if trained else "fit", own)
    callback = next(callback for callback in parts_of(trainer).callbacks if isinstance(callback, CurriculumCallback))
    if trained:
        callback.conclude(trainer, own["trainer"]["max_steps"], validation_figures(trainer))
    ended = callback.ended
    # A stage's weights go before the next one's come.
    del trainer, callback
    gc.collect()
    torch.cuda.empty_cache()
    return ended


def _check_stages(config: Config, run: Path, check: Callable[[Config], object]) -> None:
    """A stage that cannot be trained is told now, not when its turn has come."""
    stages = stages_of(config)
    CurriculumCallback([Stage(**stage) for stage in stages])
    for stage in stages:
        own = stage_config(config, stage, run, None)
        parts = own["data"].get("init_args", {}).get("stages")
        if parts is not None and stage["name"] not in parts:
            raise ValueError(f"Stage '{stage['name']}' has no data module in data.init_args.stages.")
        data = own["data"] if parts is None else parts[stage["name"]]
        try:
            check(own)
            check_batches(own["trainer"], data)
            check_paths({**own, "data": data}, has_checkpoint=stage is not stages[0] or bool(config.get("ckpt_path")))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"Stage '{stage['name']}': {error}") from error


def _ended(run: Path, stages: list[Config], resuming: bool) -> dict[str, int]:
    """Stages of the run to be resumed that have ended, and the steps each took; none of a new run."""
    begun = _begun(run, stages)
    if not resuming:
        if begun:
            raise ValueError(
                f"The run folder {run} holds checkpoints of an earlier run ({', '.join(begun)}): resume it with "
                f"--ckpt_path {run}, choose another --trainer.default_root_dir, or remove it."
            )
        return {}
    if not begun:
        raise FileNotFoundError(f"{run} holds no checkpoint of any stage: start it again as it was started.")
    ended = Record(run).ended()
    if all(stage["name"] in ended for stage in stages):
        raise ValueError(f"Nothing to train: all stages of {run} have ended ({', '.join(ended)}).")
    return ended
