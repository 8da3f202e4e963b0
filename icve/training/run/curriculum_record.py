"""RUN/curriculum.jsonl: what was measured at every switch of a curriculum's stages and at every validation between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icve.runtime.atomic import write_text
from icve.runtime.printable import json_lines


class Record:
    """One line per event: {event, stage, step, run_step, figures}.

    event: "start" of a stage, "interval" (a validation), or "end" of a stage. step: optimizer steps done in the stage;
    run_step: in the whole run. figures: name → value of all that was validated, {} without held-out data.

    One process writes it, the whole file every time: a kill leaves no half a line.

    Args:
        run: folder of the curriculum's run.
    """

    FILE = "curriculum.jsonl"

    def __init__(self, run: str | Path) -> None:
        self.file = Path(run) / self.FILE

    def entries(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        return [json.loads(line) for line in json_lines(self.file)] if self.file.is_file() else []

    def ended(self) -> dict[str, int]:
        """Stages that have ended, and the steps each took."""
        return {entry["stage"]: entry["step"] for entry in self.entries() if entry["event"] == "end"}

    def rewind(self, earlier: Sequence[str], stage: str, step: int) -> list[dict[str, Any]]:
        """Forget all but the stages before `stage` and what of it happened before `step`; returns what remains of it.

        A resumed run repeats the rest, so that the record tells one uninterrupted story.
        """
        entries = self.entries()
        own = [entry for entry in entries if entry["stage"] == stage and entry["step"] < step]
        self._write([entry for entry in entries if entry["stage"] in earlier] + own)
        return own

    def add(self, **entry: Any) -> None:
        """Append one event."""
        self._write([*self.entries(), entry])

    def _write(self, entries: Sequence[dict[str, Any]]) -> None:
        write_text(self.file, "".join(json.dumps(entry) + "\n" for entry in entries))
