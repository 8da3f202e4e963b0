"""Stages that do nothing useful, for tests of the runner; child processes import them by name."""

import os
import time

from icve.curation.stage import Rejected, Stage


class Count(Stage):
    """Adds columns, and leaves a mark for every row it worked on."""

    incidental = frozenset({"note"})

    def __init__(self, value: int = 1, note: str = "", batch: int = 1) -> None:
        self.value, self.batch_size = value, batch

    def __call__(self, rows, work):
        for row in rows:
            with open(work.output / "worked.txt", "a") as file:
                file.write(f"{row['key']} {self.value}\n")
        return [{**row, "value": self.value} for row in rows]


class Split(Stage):
    """Cuts a row into several; rejects those whose name says so."""

    def __init__(self, pieces: int = 2, drop: str = "drop") -> None:
        self.pieces, self.drop = pieces, drop

    def __call__(self, rows, work):
        return [
            Rejected("named so", f"{row['video']} holds {self.drop}")
            if self.drop in row["video"]
            else [{**row, "piece": piece} for piece in range(self.pieces)]
            for row in rows
        ]


class Levels(Stage):
    """Gives whole levels and others, and notes of which type the one was that the row came with."""

    def __call__(self, rows, work):
        return [
            {**row, "came": type(row.get("level")).__name__, "level": 0.5 if row["video"] == "a.mp4" else 1}
            for row in rows
        ]


class Misbehave(Stage):
    """Does what a video's name says: raises, hangs, dies."""

    def __init__(self, limit: float = 0.3, batch: int = 4) -> None:
        self.limit, self.batch_size = limit, batch

    def seconds(self, row):
        return self.limit

    def __call__(self, rows, work):
        for row in rows:
            if "raise" in row["video"]:
                raise KeyError("no such thing")
            if "hang" in row["video"]:
                time.sleep(1000)
            if "die" in row["video"]:
                os.kill(os.getpid(), 9)
        return rows


class Flaky(Stage):
    """Cannot work while a file called `down` lies in the output folder."""

    def __call__(self, rows, work):
        down = (work.output / "down").exists()
        return [Rejected("no answer", "the endpoint is down", transient=True) if down else row for row in rows]


class Keep(Stage):
    """Sees all rows and keeps the first few of them, by key."""

    scope = "all"

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def __call__(self, rows, work):
        kept = sorted(row["key"] for row in rows)[: self.count]
        return [row if row["key"] in kept else Rejected("over the limit") for row in rows]


class Die(Stage):
    """Sees all rows and dies."""

    scope = "all"

    def __call__(self, rows, work):
        os.kill(os.getpid(), 9)


class Broken(Stage):
    """Cannot start."""

    def setup(self):
        raise OSError("there is no model")

    def __call__(self, rows, work):
        return rows


class Forgetful(Stage):
    """Loses a row."""

    def __call__(self, rows, work):
        return rows[1:]


class Pair(Stage):
    """Makes manifest rows."""

    needs = "gpu"

    def __call__(self, rows, work):
        return [
            {**row, "source_path": row["video"], "target_path": row["video"], "instruction": "Make it move."}
            for row in rows
        ]


class FullDisk(Stage):
    """Cannot write its files."""

    def __call__(self, rows, work):
        raise OSError(28, "No space left on device")


class Slow(Stage):
    """Takes a while for every row."""

    def __init__(self, delay: float = 0.2) -> None:
        self.delay = delay

    def __call__(self, rows, work):
        time.sleep(self.delay * len(rows))
        return rows
