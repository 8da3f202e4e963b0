"""`icve fit` and `icve validate`: training, with the user's mistakes told in one sentence."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback

from icve.cli.main import fail

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def main(arguments: list[str]) -> int:
    """Run `fit` or `validate`, the first of the arguments, and return the exit status."""
    if not arguments[1:]:
        return fail(f"{arguments[0]} needs a configuration: icve {arguments[0]} -c CONFIG.yaml")
    # Classes named in YAML are found in the working directory, whichever way the command was started.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from icve.runtime.orphans import end_with_launcher
    from icve.runtime.shutdown import let_exchanges_end

    end_with_launcher()  # imports take seconds
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities import rank_zero_only

    from icve.runtime.storage.remote_path import RemoteError
    from icve.training.callbacks.nonfinite import TrainingDiverged
    from icve.training.checkpoints.checkpoint_io import CheckpointNotWritten
    from icve.training.run.command import TrainingCommand

    package, handler = logging.getLogger("icve"), logging.StreamHandler()
    package.addHandler(handler)
    rank = getattr(rank_zero_only, "rank", 0)
    package.setLevel(logging.INFO if rank == 0 else logging.WARNING)  # all would say the same
    try:
        return TrainingCommand(arguments).status
    except (TrainingDiverged, CheckpointNotWritten) as error:
        return fail(str(error), status=1)
    except RemoteError as error:
        return fail(f"{error} Checkpoints stay as they are.", status=1)
    except MisconfigurationException as error:
        return fail(str(error))
    except (ValueError, FileNotFoundError) as error:
        if not _raised_by_this_package(error):
            raise
        return fail(str(error))
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        return fail(f"The run folder cannot be written: {error}. Mend that, then resume.", status=1)
    finally:
        package.removeHandler(handler)
        let_exchanges_end()


def _raised_by_this_package(error: BaseException) -> bool:
    """Whether an error is a sentence of ours for the user; one from deeper down keeps its traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").split(".")[0] == "icve"
