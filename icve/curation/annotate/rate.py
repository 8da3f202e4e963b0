"""A rate limit that all processes of a run keep together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from icve.runtime.locks import locked

_LONGEST = 3600.0  # seconds; a time further ahead is another machine's wrong clock


class RateLimit:
    """Spaces requests evenly, over all processes and machines with the same file.

    The file holds two times: when the next request may start, and when the tokens asked for so far will have been
    paid off. Nothing is saved up: after a pause, requests do not come in a burst.

    Args:
        file: where the times stand.
        requests_per_minute: most requests started in a minute; None for no limit.
        tokens_per_minute: most tokens, of input and output together; None for no limit.
    """

    def __init__(
        self, file: Path, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self.file = file
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0

    def reserve(self, tokens: float = 0.0) -> float:
        """Take the next free time for a request of so many tokens; returns the seconds to wait until then."""
        with self._times() as times:
            now = time.time()
            start = max(now, *times)
            times[0] = start + self._seconds_per_request
            times[1] = start + self._seconds_per_token * tokens
        return start - now

    def correct(self, tokens: float) -> None:
        """Add tokens that a request took beyond those it was reserved with (fewer, where negative)."""
        if self._seconds_per_token:
            with self._times() as times:
                times[1] += self._seconds_per_token * tokens

    def pause(self, seconds: float) -> None:
        """Start no request for so many seconds."""
        with self._times() as times:
            times[0] = max(times[0], time.time() + seconds)

    @contextmanager
    def _times(self) -> Iterator[list[float]]:
        with locked(self.file.with_name(f".{self.file.name}.lock")):
            try:
                times = [float(value) for value in json.loads(self.file.read_text(encoding="utf-8"))]
                if len(times) != 2 or not all(value < time.time() + _LONGEST for value in times):
                    times = [0.0, 0.0]
            except (FileNotFoundError, ValueError, TypeError):
                times = [0.0, 0.0]  # none yet, or torn by a crash
            yield times
            self.file.write_text(json.dumps(times), encoding="utf-8")
