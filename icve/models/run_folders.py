"""Which folders are checkpoints: their names, the links to them, and which one a path means.

RUN/checkpoints/step-NNNNNN are the checkpoints of a run; `last` and `best` there are links to two of them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from icve.models.remote_runs import on_disk
from icve.models.run_names import BEST, FOLDER_NAME, LAST, TRAINER_FILE, step_of, tell, tell_once
from icve.runtime.folder_contents import CONTENTS, find_damage
from icve.runtime.storage.remote_path import RemotePath, as_path

EXPORT_AGAIN = (
    "name an earlier checkpoint, or remove the damaged one and resume the run (--ckpt_path RUN), which writes it again"
)


def saved_checkpoints(folder: Path) -> list[Path]:
    """The complete `step-*` checkpoints of a folder, oldest step first."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if FOLDER_NAME.fullmatch(entry.name) and entry.is_dir()]
    return sorted(found, key=step_of)


def resolve_checkpoint(path: str | Path) -> Path:
    """What a user names as a checkpoint, as the folder or file that holds it.

    Args:
        path: a run folder (its newest checkpoint is taken), its `checkpoints` folder, `checkpoints/last`, another link
            to a checkpoint (`checkpoints/best`), a checkpoint folder, a model folder, or a weights file. Where the
            newest is meant, one that is damaged, as far as a glance shows, is passed over for the one before it. What
            is behind a URL is copied to the local disk first (:mod:`icve.models.remote_runs`), here and below.

    Raises:
        FileNotFoundError: if there is nothing of that kind.
        ValueError: the checkpoint is damaged, and no other would do.
    """
    found = _locate(on_disk(path).expanduser())
    if not FOLDER_NAME.fullmatch(found.name):
        return found
    return undamaged(found, not names_itself(path), partial(find_damage, of=0))


def exported(folder: Path) -> bool:
    """Whether the editor in a checkpoint's folder has its weights (or an adapter), which edits load at once."""
    return any((folder / "transformer").glob("*.safetensors")) or not (folder / "transformer").is_dir()


def inside_run(path: str | Path, newest: bool = False) -> Path:
    """The checkpoint to edit with, of a run's folder or a link to its last one; any other path is itself.

    It is the newest whole one that is exported, or the newest whole one where none is.

    Args:
        path: what a user names.
        newest: take the newest whole one, be it exported or not.

    Raises:
        ValueError: all are damaged.
    """
    path = on_disk(path, editor=not newest).expanduser()
    last = path if path.name == LAST else path / "checkpoints" / LAST
    saved = [last.resolve()] if last.is_dir() else saved_checkpoints(path / "checkpoints")[-1:]
    if not saved:
        return path
    if not (FOLDER_NAME.fullmatch(saved[0].name) and (saved[0] / CONTENTS).is_file()):
        return saved[0]
    look = partial(find_damage, of=0)
    found = undamaged(saved[0], fall_back=True, look=look, use="{} is taken instead", advice=EXPORT_AGAIN)
    if newest or exported(found):
        return found
    for folder in reversed(saved_checkpoints(found.parent)):
        if step_of(folder) < step_of(found) and exported(folder) and look(folder) is None:
            tell_once(
                f"The newest editor of {path} is that of step {step_of(folder)} ({folder}); name {found} for step "
                f"{step_of(found)}, which is not exported and takes longer to load."
            )
            return folder
    return found


def names_itself(path: str | Path) -> bool:
    """Whether a certain checkpoint is named, by its folder or a link such as `best`, and not the newest of a run."""
    path = as_path(path).expanduser()
    if isinstance(path, RemotePath) and path.name == BEST:
        return True
    return path.name != LAST and FOLDER_NAME.fullmatch(path.resolve().name) is not None


def _locate(path: Path) -> Path:
    damaged = path.is_dir() and FOLDER_NAME.fullmatch(path.resolve().name)
    if path.is_file() or (path / TRAINER_FILE).is_file() or damaged:
        return path.resolve()
    for folder in (path / "checkpoints", path, path.parent if path.name == LAST else path):
        if (folder / LAST / TRAINER_FILE).is_file():
            return (folder / LAST).resolve()
        # The link is missing or dangling only if the run was killed in between: the newest folder is what it meant.
        if complete := saved_checkpoints(folder):
            return complete[-1].resolve()
    if path.is_dir() and any((path / name).is_file() for name in ("config.json", "model_index.json")):
        return path.resolve()
    problem = "holds no checkpoint" if path.exists() else "does not exist"
    raise FileNotFoundError(
        f"The checkpoint {path} {problem}; name a run folder, a checkpoint folder (RUN/checkpoints/last), a model "
        "folder or a safetensors file."
    )


def undamaged(
    path: Path,
    fall_back: bool,
    look: Callable[[Path], str | None] = find_damage,
    use: str = "the run goes on from {}",
    advice: str = "resume from an earlier one",
) -> Path:
    """A checkpoint folder, or the newest before it that is as it was written.

    Args:
        path: the folder.
        fall_back: take an earlier one where it is damaged.
        look: says what is wrong with a folder, None if nothing.
        use: what is told of an earlier one, in place of {}.
        advice: where there is none to fall back to.

    Raises:
        ValueError: none is as it was written.
    """
    saved = saved_checkpoints(path.parent) if fall_back else []
    older = [folder for folder in saved if step_of(folder) < step_of(path)]
    problems: list[str] = []
    for folder in (path, *reversed(older)):
        problem = look(folder)
        if problem is None:
            if problems:
                tell(f"{problems[0]}; {use.format(folder)}.")
            return folder
        problems.append(problem)
    raise ValueError(f"The checkpoint {path} is damaged: {problems[0]}; {advice}.")
