"""What asking has cost: a line per request, in a file per process, which anybody can add up while a run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from icve.runtime.printable import json_lines


@dataclass(frozen=True)
class Usage:
    """Requests answered and their tokens.

    Attributes:
        requests: completions that an endpoint sent.
        kept: questions answered from disk instead.
        unmetered: requests of which the endpoint did not say how many tokens they took: they are missing below.
        input_tokens, output_tokens: as the endpoint counted them.
        cost: by the prices that were set, in their currency.
    """

    requests: int = 0
    kept: int = 0
    unmetered: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Usage)))

    def __str__(self) -> str:
        text = f"{self.requests} requests, {self.kept} answers from disk, {self.input_tokens} tokens in, "
        text += f"{self.output_tokens} tokens out, cost {self.cost:.2f}"
        return text + (f" ({self.unmetered} requests came without a count of tokens)" if self.unmetered else "")


class UsageLog:
    """Appends usage to ``<folder>/usage/<host>-<process>.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "usage"

    def add(self, model: str, usage: Usage) -> None:
        """Write a line: in one call, so that threads' lines stay apart and a killed process leaves whole ones."""
        line = json.dumps({"model": model, **asdict(usage)}) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        # The process's number is looked up each time: a forked process gets a file of its own.
        name = self.folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def total_usage(folder: Path) -> dict[str, Usage]:
    """Usage by model, summed over all processes that kept answers in a folder; empty where none did.

    A line that a crash of the machine cut short is left out.
    """
    totals: dict[str, Usage] = {}
    for file in sorted((folder / "usage").glob("*.jsonl")):
        for line in json_lines(file, errors="replace"):
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                values = json.loads(line)
                model = values.pop("model")
                totals[model] = totals.get(model, Usage()) + Usage(**values)
    return totals
