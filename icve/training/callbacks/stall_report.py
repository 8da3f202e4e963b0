"""Who keeps a stalled run waiting, and for what."""

from collections import defaultdict
from collections.abc import Mapping, Set

from icve.training.callbacks.heartbeats import Beat

SILENT = "silent: stopped, dead or cut off from the run folder"


def waited_for(beats: Mapping[int, Beat | None], silent: Set[int]) -> dict[int, str]:
    """Ranks that the others wait for, and why it is them; empty where none stands out.

    Silent ranks if there are any. Else those that have begun the fewest collectives, or of these the ones outside of a
    distributed operation while others are inside.

    Args:
        beats: last beat of every rank.
        silent: ranks whose heart has stopped.
    """
    if silent:
        return dict.fromkeys(sorted(silent), SILENT)
    heard = _left(beats)
    begun = {rank: beat.collectives for rank, beat in heard.items() if beat.collectives is not None}
    lag = len(begun) == len(beats) and len(set(begun.values())) > 1
    behind = [rank for rank in heard if not lag or begun[rank] == min(begun.values())]
    outside = [rank for rank in behind if heard[rank].operation is None]
    if not lag and len(outside) == len(beats):
        return {}
    most = f", {max(begun.values())} collectives begun elsewhere and {min(begun.values())} here" if lag else ""
    return {rank: f"in {heard[rank].place}{most}" for rank in outside or (behind if lag else [])}


def headline(beats: Mapping[int, Beat | None], silent: Set[int]) -> str:
    """One or two sentences: which ranks are waited for, and in which operation the others wait."""
    if len(beats) == 1:
        (beat,) = _left(beats).values()
        return f"The process is in {beat.place}, since the run entered {beat.phase}."
    late = waited_for(beats, silent)
    operations = defaultdict(list)
    for rank, beat in _left(beats).items():
        if rank not in late:
            operations[beat.operation or beat.place].append(rank)
    waiting = "; ".join(f"{named(ranks)} in {operation}" for operation, ranks in operations.items())
    if not late:
        return f"No rank stands out: the network or a device may be at fault. Waiting: {waiting}."
    reasons = defaultdict(list)
    for rank, reason in late.items():
        reasons[reason].append(rank)
    held_up = "; ".join(f"{named(ranks)} ({reason})" for reason, ranks in reasons.items())
    return f"The others wait for {held_up}. Waiting: {waiting or 'nobody'}."


def stacks(beats: Mapping[int, Beat | None], silent: Set[int]) -> str:
    """The stacks of all ranks; ranks with the same one together."""
    groups = defaultdict(list)
    for rank, beat in beats.items():
        if beat is None:
            stack = "left no heartbeat: it has ended, or sees another run folder\n"
        else:
            stack = f"in {beat.phase}:\n{beat.stack}"
        groups[(rank in silent and beat is not None, stack)].append(rank)
    return "".join(
        f"{named(ranks)}, {'when last heard of, ' if old else ''}{stack}" for (old, stack), ranks in groups.items()
    )


def _left(beats: Mapping[int, Beat | None]) -> dict[int, Beat]:
    """Those that there are; a rank without one is silent."""
    return {rank: beat for rank, beat in beats.items() if beat is not None}


def named(ranks: list[int]) -> str:
    """ "rank 3", "ranks 0, 2-7"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"
