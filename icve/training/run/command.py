"""`icve fit` and `icve validate`: classes from YAML, run folders, and what a checkpoint means to a run."""

import logging
import os
import warnings
from argparse import ArgumentError
from collections.abc import Mapping
from contextvars import copy_context
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.utilities import rank_zero_info

from icve.models.families import with_transformers
from icve.models.lora import adapted_weights
from icve.models.run_folders import names_itself, resolve_checkpoint, saved_checkpoints
from icve.runtime.atomic import write_text
from icve.runtime.precision import AUTO
from icve.runtime.storage.fetched import origin_of
from icve.runtime.text_files import not_utf8
from icve.runtime.threads import share_quota
from icve.training.callbacks.attention_kernel import AttentionKernel
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.monitor import StepProgressBar
from icve.training.callbacks.nonfinite import SkipNonFinite
from icve.training.callbacks.profile import Profile
from icve.training.callbacks.stop_signal import StopOnSignal, status
from icve.training.checkpoints.checkpoint_io import CheckpointFolders
from icve.training.checkpoints.data_record import data_changes
from icve.training.checkpoints.stage_record import read_stage
from icve.training.checkpoints.starting_weights import ranges_for
from icve.training.distributed.sharded import ShardedState
from icve.training.lightning_types import parts_of
from icve.training.module import InContextEditingModule
from icve.training.run.arguments import explain, in_one_line, with_strategy_class
from icve.training.run.curriculum import RunLogger, first_step
from icve.training.run.environment import record_start
from icve.training.run.launchers import cluster_environment
from icve.training.run.paths import check_paths
from icve.training.run.run_precision import frozen_weights_dtype, run_precision
from icve.training.run.stage_checks import count_processes
from icve.training.run.stage_runs import begins_anew, bring_back, fit_stages, run_folder, stages_of
from icve.training.run.trainer import EditTrainer

# Advertisement, and a deprecation inside Lightning: neither is for the user of this command.
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+` is deprecated.*|.*all_gather is deprecated.*")

NOT_UPLOADED = 3  # exit status of a run that did all it had to, but could not upload all of its checkpoints
ResumeMode = Literal["auto", "full", "weights"]


class RunConfig(SaveConfigCallback):
    """Writes the resolved configuration to RUN/config.yaml, and what it runs with to RUN/environment.json."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        run = Path(trainer.default_root_dir)
        write_text(run / "config.yaml", self.parser.dump(self.config, skip_unset=False))
        record_start(run, trainer.world_size)


class TrainingCommand(LightningCLI):
    """LightningCLI for the stages of training.

    Differs from the stock one in what a checkpoint does: `--ckpt_path` of the same stage (`model.stage`) is resumed
    completely, of another stage gives its EMA weights to a new run; `--resume_mode full|weights` decides otherwise.
    Where it is the run's own folder and nothing is there yet, the run begins: one command line serves every start.
    Every run has a folder, `trainer.default_root_dir` (runs/STAGE unless given), with config.yaml, checkpoints/ and
    tensorboard/.

    Attributes:
        status: exit status of what was done.
    """

    status = 0

    def __init__(self, args: list[str]) -> None:
        self._resolved = cache(resolve_checkpoint)  # so that a damaged one is told of once
        super().__init__(
            InContextEditingModule,
            LightningDataModule,
            subclass_mode_data=True,
            trainer_class=EditTrainer,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            # The sampler of icve.data gives every process its own samples.
            trainer_defaults={
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
            parser_kwargs={"prog": "icve", "parser_mode": "omegaconf", "exit_on_error": False},
            auto_configure_optimizers=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--resume_mode",
            type=ResumeMode,
            default="auto",
            help="What --ckpt_path does. full: continue its stage (step, optimizer, learning rate, data). weights: "
            "start this stage from its EMA weights. auto: full if it is a checkpoint of this stage, else weights.",
        )
        parser.add_argument(
            "--profile",
            type=str | None,
            default=None,
            help="START:STEPS, as in 10:5: torch.profiler records five steps after the first ten, into RUN/profile/.",
        )
        parser.add_argument(
            "--variables",
            type=dict[str, str],
            default={},
            help="Names for what a YAML says more than once, as in ${variables.weights}; resolved while it is read.",
        )

    def parse_arguments(  # type: ignore[override]  # __init__ takes nothing else
        self, parser: LightningArgumentParser, args: list[str]
    ) -> None:
        if any(argument.startswith("--variables") for argument in args):
            # The YAML's references to it are resolved before the command line is looked at.
            raise ValueError("variables are set in the YAML, or by the environment variables that it names there.")
        self.config = self._parsed(args)

    def _parsed(self, args: list[str]) -> Any:
        try:
            return self.parser.parse_args(with_strategy_class(args))
        except ArgumentError as error:
            raise ValueError(explain(str(error), self._subcommand_parsers[args[0]])) from error
        except UnicodeDecodeError as error:
            # The parser does not say which file it was reading.
            files = filter(os.path.isfile, (word.rpartition("=")[2] for word in args))
            problem = next(filter(None, map(not_utf8, files)), None)
            raise ValueError(problem or f"A file of the configuration is not UTF-8: {error}.") from error

    def _parse_ckpt_path(self) -> None:
        """The configuration rules: hyper-parameters inside a checkpoint never override it."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        named = config["ckpt_path"]
        if self.subcommand == "fit":
            config["ckpt_path"] = bring_back(config)
        if self.subcommand == "fit" and begins_anew(config):
            rank_zero_info(f"{named} is the run's own folder and holds no checkpoint yet: it begins anew.")
            config["ckpt_path"] = None
        # Weights of 13 B parameters are not made up to be overwritten: the pretrained ones take their places.
        starts_elsewhere = self._get(self.config, "ckpt_path") is not None
        check_paths(config, starts_elsewhere)
        if not self._trains_a_curriculum():
            self._choose_precision(config)
        if self._get(self.config, "model.start.pretrained") is not None:
            for family in [family for family in with_transformers() if family.start_from is None]:
                self.parser.add_instantiator(_on_meta, family.transformer_class())

    def instantiate_classes(self) -> None:
        if self._trains_a_curriculum():
            return  # each stage has its own
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise ValueError(f"The configuration cannot be used: {in_one_line(str(error))}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        run = str(run_folder(self.config[self.subcommand]))
        kwargs["precision"] = self._precision
        share_quota(count_processes(config) // int(config.get("num_nodes") or 1))
        if config.get("logger") in (None, True):
            # A validation by hand has no place in the curves of the run.
            fit = self.subcommand == "fit"
            kwargs["logger"] = fit and RunLogger(run, first_step(config.get("callbacks") or [], self.model.stage, run))
        callbacks = list(config.get("callbacks") or [])
        # Never absent: no run without checkpoints, protection from divergence and progress in steps.
        for kind, default, switch in (
            (Checkpoint, Checkpoints, "enable_checkpointing"),
            (SkipNonFinite, SkipNonFinite, None),
            (ProgressBar, StepProgressBar, "enable_progress_bar"),
            (StopOnSignal, StopOnSignal, None),
            (AttentionKernel, AttentionKernel, None),
        ):
            if config.get(switch) is not False and not any(isinstance(callback, kind) for callback in callbacks):
                callbacks.append(default())
        if text := self._get(self.config_init, "profile"):
            callbacks.append(Profile.parse(text))
        plugins = config.get("plugins") or []
        plugins = [*(plugins if isinstance(plugins, list) else [plugins]), CheckpointFolders()]
        if (environment := cluster_environment()) and not any(isinstance(p, ClusterEnvironment) for p in plugins):
            plugins.append(environment)
        trainer = super().instantiate_trainer(default_root_dir=run, callbacks=callbacks, plugins=plugins, **kwargs)
        if environment is not None:
            environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        return trainer

    def _choose_precision(self, config: Any) -> None:
        """Settle what the configuration leaves open: as the run began, where one is resumed."""
        path = config["ckpt_path"] if self.subcommand == "fit" else None
        saved = None if path is None else read_stage(self._resolved(path))
        begun = saved if saved and self._resumes(saved, config["model"]["stage"]) else {}
        self._precision = run_precision(config, begun.get("precision"))
        lora = config["model"]["start"]["lora"]
        if lora is not None and lora["weights_dtype"] == AUTO:
            default = frozen_weights_dtype(config["trainer"], self._precision)
            lora["weights_dtype"] = begun.get("weights_dtype") or default

    def _resumes(self, saved: dict[str, Any] | None, stage: str) -> bool:
        """Whether a checkpoint is resumed, and not only its weights taken.

        Args:
            saved: what it says of its stage, None where it does not or there is none.
            stage: to train.
        """
        mode = self._get(self.config, "resume_mode")
        return saved is not None and (mode == "full" or (mode == "auto" and saved["stage"] == stage))

    # ---- a curriculum ---------------------------------------------------------------------------------------------

    def _trains_a_curriculum(self) -> bool:
        return self.subcommand == "fit" and bool(stages_of(self.config["fit"]))

    def _run_subcommand(self, subcommand: str) -> None:
        if not self._trains_a_curriculum():
            super()._run_subcommand(subcommand)
            return

        def run_stage(command: str, own: Mapping[str, Any]) -> Trainer:
            # In a context of its own: the parser stays in it, and with it the model.
            done = copy_context().run(TrainingCommand, [command, "-c", yaml.safe_dump(own)])
            self.status = self.status or done.status
            return done.trainer

        ended = fit_stages(
            yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_unset=False)),
            run_stage,
            check=lambda own: self._parsed(["fit", "-c", yaml.safe_dump(own)]),
        )
        self.status = ended or self.status

    # ---- fit and validate ----------------------------------------------------------------------------------------

    def fit(self, model: InContextEditingModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train the stage.

        Raises:
            ValueError: if nothing would be trained, or the run folder holds another run's checkpoints.
            FileNotFoundError: if `ckpt_path` names no checkpoint.
        """
        trainer = self.trainer
        if trainer.max_steps < 1:
            raise ValueError("The stage has no length: set trainer.max_steps to the number of optimizer steps.")
        resumed, start = self._prepare(model, ckpt_path)
        written = [callback for callback in parts_of(trainer).callbacks if isinstance(callback, Checkpoints)]
        if start >= trainer.max_steps:
            for callback in written:
                callback.upload_rest(Path(trainer.default_root_dir))
            raise ValueError(
                f"Nothing to train: {resumed} is at step {start} of stage '{model.stage}' and trainer.max_steps is "
                f"{trainer.max_steps}; raise it, or start a new stage."
            )
        if resumed is None and (kept := saved_checkpoints(Path(trainer.default_root_dir) / "checkpoints")):
            raise ValueError(
                f"The run folder {trainer.default_root_dir} holds the checkpoint {kept[-1].name} of an earlier run: "
                f"resume it with --ckpt_path {trainer.default_root_dir}, choose another --trainer.default_root_dir, or "
                "remove it."
            )
        size = sum(p.numel() for p in model.transformer.parameters() if p.requires_grad)
        rank_zero_info(f"Training {size / 1e6:.1f} M parameters up to step {trainer.max_steps}.")
        trainer.fit(model, ckpt_path=resumed, **kwargs)
        stop = next(callback for callback in parts_of(trainer).callbacks if isinstance(callback, StopOnSignal))
        self.status = status(stop.listening.heard) or (0 if all(c.uploaded for c in written) else NOT_UPLOADED)
        if trainer.global_step <= start and not (trainer.interrupted or trainer.should_stop):
            raise ValueError(
                f"Nothing was trained: the run ended at step {trainer.global_step}; check that the training data is "
                "not empty and that no trainer.limit_* option is 0."
            )

    def validate(self, model: InContextEditingModule, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Losses of a checkpoint's EMA weights on the validation set."""
        if ckpt_path is None:
            raise ValueError("Nothing to validate: name the model with --ckpt_path.")
        model.load_weights(resolve_checkpoint(ckpt_path))
        self.trainer.validate(model, **kwargs)

    def _prepare(self, model: InContextEditingModule, ckpt_path: str | None) -> tuple[Path | None, int]:
        """Decide between resuming and a warm start: (folder to resume or None, step to start from)."""
        mode = self._get(self.config, "resume_mode")
        shared = isinstance(self.trainer.strategy, ShardedState)
        if ckpt_path is None:
            if mode == "full":
                raise ValueError("--resume_mode full needs a checkpoint: name it with --ckpt_path.")
            if model.start.pretrained is None:
                rank_zero_info(f"Stage '{model.stage}' starts from new weights.")
            else:
                taken = self._take_weights(model, model.start.pretrained)
                rank_zero_info(
                    f"Stage '{model.stage}' starts from the weights in {model.start.pretrained}"
                    f"{taken and f': {taken}'}."
                )
            model.add_adapter(model.start.pretrained)
            return None, 0
        checkpoint = self._resolved(ckpt_path)
        if isinstance(folders := self.trainer.strategy.checkpoint_io, CheckpointFolders):
            folders.fall_back = not names_itself(ckpt_path)
        saved, shown = read_stage(checkpoint), origin_of(checkpoint)
        if mode == "full" and saved is None:
            raise ValueError(f"{shown} holds weights only and cannot be resumed: use --resume_mode weights.")
        if saved is None or not self._resumes(saved, model.stage):
            self._take_weights(model, checkpoint)
            origin = f" of stage '{saved['stage']}', step {saved['step']}" if saved else ""
            rank_zero_info(f"Stage '{model.stage}' starts at step 0 from the weights in {shown}{origin}.")
            model.add_adapter(checkpoint)
            return None, 0
        rank_zero_info(f"Stage '{model.stage}' resumes at step {saved['step']} from {shown}.")
        if saved["seed"] != model.seed:
            rank_zero_info(f"The seed changes from {saved['seed']} to {model.seed}: data and noise will differ.")
        if changes := data_changes(saved["data"], self.datamodule, model.stage):
            rank_zero_info(changes)
        weights = adapted_weights(checkpoint)
        if (weights is None) != (model.start.lora is None):
            kinds = ("an adapter", "whole weights") if weights is not None else ("whole weights", "an adapter")
            raise ValueError(
                f"{shown} trained {kinds[0]} and the configuration trains {kinds[1]}: give model.start.lora as "
                "then, or start another stage."
            )
        if weights is None:
            model.allocate(shared)
        else:
            model.load_weights(weights)
            model.add_adapter(weights)
        return checkpoint, saved["step"]

    def _take_weights(self, model: InContextEditingModule, path: str | Path) -> str:
        """As `InContextEditingModule.load_weights`; processes that share the weights read their parts themselves."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedState) and model.lora is None and (own := ranges_for(model.transformer, path)):
            model.allocate(shared=True)
            strategy.starts_from = own
            return ""
        return model.load_weights(path, shared=isinstance(strategy, ShardedState))


def _on_meta(class_type: type, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:
    """Instantiator of jsonargparse: parameters have shapes, and take no memory and no time."""
    with torch.device("meta"):
        return class_type(*args, **kwargs)
