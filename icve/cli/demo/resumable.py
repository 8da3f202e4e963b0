"""Long work in resumable tasks: what is finished is not done again, what changed is."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from icve.runtime.atomic import write_text


class CannotRun(ValueError):
    """What the demo was asked for cannot be done; the message says what to do."""


class ResumableTasks:
    """What is done, in ``OUTPUT/stages.json``: a task is run when it is not finished or its inputs changed.

    Seconds add up over interrupted attempts; one that was killed leaves no time behind.
    """

    def __init__(self, output: Path) -> None:
        self.file = output / "stages.json"
        self.states: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            self.states = json.loads(self.file.read_text(encoding="utf-8"))

    def run(
        self, name: str, title: str, folder: Path, inputs: Mapping[str, Any], work: Callable[[Path], object]
    ) -> str:
        """Let ``work`` fill ``folder`` unless that was done with the same ``inputs`` (JSON); returns the inputs' key.

        An unfinished task finds its folder as it left it; after a change of inputs the folder is emptied first.
        """
        key = hashlib.blake2b(json.dumps([name, inputs], sort_keys=True).encode(), digest_size=8).hexdigest()
        state = self.states.get(name)
        if folder.exists():
            if state is None:
                raise CannotRun(f"{folder} exists but no earlier run made it: choose another --output or remove it.")
            if state["key"] != key:
                print(f"  {title}: settings or inputs changed since the last run, so it is done again")
                shutil.rmtree(folder)
            elif state["finished"]:
                print(f"✓ {title}: kept from an earlier run")
                return key
        if state is None or not folder.exists():
            state = {"key": key, "finished": False, "seconds": 0.0}
        print(f"▶ {title}", flush=True)
        self._note(name, state)
        before, started = state["seconds"], time.perf_counter()
        try:
            work(folder)
            state["finished"] = True
        finally:
            state["seconds"] = round(before + time.perf_counter() - started, 2)
            self._note(name, state)
        print(f"✓ {title}: {state['seconds']:.0f} s", flush=True)
        return key

    def _note(self, name: str, state: dict[str, Any]) -> None:
        self.states[name] = state
        write_text(self.file, json.dumps(self.states, indent=2) + "\n")


def digest(path: Path) -> str:
    """Hash of a file's content, to tell whether a task's input changed."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
