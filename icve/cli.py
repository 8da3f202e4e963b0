"""The `icve` command, also installed as `lightning`: dispatches to one module per subcommand.

Nothing heavy is imported until a subcommand is known.
"""

import difflib
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterable

from icve.data.media.media_paths import refuse_foreign
from icve.runtime.printable import forgive_output
from icve.runtime.threads import set_up_threads

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
USAGE = 2  # exit status of an error the user can correct

COMMANDS = {
    "fit": "train a stage: icve fit -c configs/demo/pretrain.yaml",
    "validate": "losses of a checkpoint: icve validate -c runs/demo/sft/config.yaml --ckpt_path runs/demo/sft",
    "plan": "memory, FLOPs and time of a run: icve plan -c configs/sft.yaml --gpus 64 --gpu_memory 80",
    "inspect-data": "what training will see of a manifest: icve inspect-data data/clips.parquet --buckets 240x384x77",
    "synthesize": "make synthetic videos: icve synthesize pairs --seed 0 --count 100 --output data/pairs",
    "demo": "the whole story on synthetic videos: icve demo",
}
MODULES = {
    "plan": "icve.plan",
    "inspect-data": "icve.inspect_data",
    "synthesize": "icve.synthetic.cli",
    "demo": "icve.demo",
}

HELP = """usage: icve COMMAND [options]      (lightning COMMAND and python -m icve COMMAND are the same)

Train instruction-based video editors that learn in context.

commands:
{commands}

examples:
  icve fit -c configs/demo/pretrain.yaml
  icve fit -c configs/demo/sft.yaml --ckpt_path runs/demo/pretrain     starts the stage from those weights
  icve fit -c configs/demo/sft.yaml --ckpt_path runs/demo/sft          resumes the stage
  icve fit -c configs/demo/sft.yaml --trainer.max_steps 50 --print_config
  icve plan -c configs/pretrain_480p.yaml --gpus 8 64 256 --gpu_memory 80
  icve inspect-data data/clips.parquet -c configs/pretrain_480p.yaml --output runs/inspection

`icve COMMAND --help` explains a command. Exit status: 0 done, 1 failed, 2 wrong usage, 3 some items failed.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes them from the process.

    Returns:
        The exit status: 0, 1 (a run failed), 2 (an error the user can correct), 3 (some items failed).
    """
    set_up_threads()
    forgive_output()
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<14}{text}" for name, text in COMMANDS.items())), end="")
        return 0 if arguments else USAGE
    if arguments[0] == "--version":
        from icve import __version__

        print(f"icve {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        return _fail(f"there is no command {command!r}{_nearest(command, COMMANDS)}; icve --help lists them")
    try:
        refuse_foreign(rest)
    except ValueError as error:
        return _fail(str(error))
    if command in MODULES:
        return importlib.import_module(MODULES[command]).main(rest) or 0
    return _train(arguments)


def _train(arguments: list[str]) -> int:
    """fit or validate, with the user's mistakes told in one sentence."""
    if not arguments[1:]:
        return _fail(f"{arguments[0]} needs a configuration: icve {arguments[0]} -c CONFIG.yaml")
    # Classes named in YAML are found in the working directory, whichever way the command was started.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from icve.runtime.orphans import end_with_launcher
    from icve.runtime.shutdown import leave

    end_with_launcher()  # imports take seconds
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities import rank_zero_only

    from icve.training.callbacks.nonfinite import TrainingDiverged
    from icve.training.checkpoints.checkpoint_io import CheckpointNotWritten
    from icve.training.run.command import TrainingCommand

    package, handler = logging.getLogger("icve"), logging.StreamHandler()
    package.addHandler(handler)
    package.setLevel(logging.INFO if rank_zero_only.rank == 0 else logging.WARNING)  # all would say the same
    try:
        return TrainingCommand(arguments).status
    except (TrainingDiverged, CheckpointNotWritten) as error:
        return _fail(str(error), status=1)
    except MisconfigurationException as error:
        return _fail(str(error))
    except (ValueError, FileNotFoundError) as error:
        if not _raised_by_this_package(error):
            raise
        return _fail(str(error))
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        return _fail(f"The run folder cannot be written: {error}. Mend that, then resume.", status=1)
    finally:
        package.removeHandler(handler)
        leave()


def _raised_by_this_package(error: BaseException) -> bool:
    """Whether an error is a sentence of ours for the user; one from deeper down keeps its traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").split(".")[0] == "icve"


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _fail(message: str, status: int = USAGE) -> int:
    print(f"icve: error: {message}", file=sys.stderr)
    return status
