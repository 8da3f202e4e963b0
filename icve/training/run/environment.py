"""What a run was made with: versions, devices, command line and commits, one entry per start, in RUN/environment.json.

Values of environment variables are not in it: they may be secrets.
"""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from icve import __version__
from icve.runtime.atomic import write_text

FILE = "environment.json"
PACKAGES = ("torch", "lightning", "deepspeed", "diffusers", "transformers")


def environment(processes: int = 1) -> dict[str, Any]:
    """What this process runs with; null for what is not installed, not there or no git repository.

    Args:
        processes: of the run, on all nodes.
    """
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "processes": processes,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"icve": __version__} | {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else ["cpu"],
        "git": {"working_directory": git_state(Path.cwd()), "icve": git_state(Path(__file__).parent, __file__)},
    }


def record_start(run: Path, processes: int) -> Path:
    """Add an entry to RUN/environment.json; returns its path.

    Raises:
        ValueError: the file holds something else.
    """
    path = run / FILE
    try:
        entries = [*json.loads(path.read_text(encoding="utf-8") if path.exists() else "[]"), environment(processes)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not what a run writes there ({error}): remove it.") from error
    return write_text(path, json.dumps(entries, indent=1) + "\n")


def git_state(folder: Path, file: str | None = None) -> dict[str, Any] | None:
    """{commit, changed}: the commit a folder is at, and whether files that git tracks differ from it.

    None where the folder is in no repository, or the repository does not track the file: a package that is installed
    inside another project's folder does not belong to it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=True)
        return done.stdout.strip()

    try:
        if file is not None:
            git("ls-files", "--error-unmatch", file)
        # Untracked files are not looked for: there may be millions, of data and runs.
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
