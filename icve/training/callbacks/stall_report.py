"""Who keeps a stalled run waiting, and for what."""

from collections import defaultdict
from collections.abc import Mapping, Set

from icve.training.callbacks.heartbeats import Beat

SILENT = "silent: stopped, dead or cut off from the run folder"


def waited_for(beats: Mapping[int, Beat], silent: Set[int]) -> dict[int, str]:
    """Ranks that the others wait for, and why it is them; empty where none stands out.

    Silent ranks if there are any. Else those that have begun the fewest collectives, or of these the ones outside of a
    distributed operation while others are inside.

    Args:
        beats: last beat of every rank that left one.
        silent: ranks whose heart has stopped, or never beat.
    """
    if silent:
        return dict.fromkeys(sorted(silent), SILENT)
    begun = [beat.collectives for beat in beats.values() if beat.collectives is not None]
    lag = len(begun) == len(beats) and len(set(begun)) > 1
    behind = [rank for rank, beat in beats.items() if not lag or beat.collectives == min(begun)]
    outside = [rank for rank in behind if beats[rank].operation is None]
    if not lag and len(outside) == len(beats):
        return {}
    most = f", {max(begun)} collectives begun elsewhere and {min(begun)} here" if lag else ""
    return {rank: f"in {beats[rank].place}{most}" for rank in outside or (behind if lag else [])}


def headline(beats: Mapping[int, Beat], silent: Set[int]) -> str:
    """One or two sentences: which ranks are waited for, and in which operation the others wait."""
    if len(beats.keys() | silent) == 1:
        (beat,) = beats.values()
        return f"The process is in {beat.place}, since the run entered {beat.phase}."
    late = waited_for(beats, silent)
    places = {rank: beat.operation or beat.place for rank, beat in beats.items() if rank not in late}
    waiting = "; ".join(f"{ranks} in {place}" for place, ranks in ranks_by_text(places).items())
    if not late:
        return f"No rank stands out: the network or a device may be at fault. Waiting: {waiting}."
    held_up = "; ".join(f"{ranks} ({reason})" for reason, ranks in ranks_by_text(late).items())
    return f"The others wait for {held_up}. Waiting: {waiting or 'nobody'}."


def stacks(beats: Mapping[int, Beat], silent: Set[int]) -> str:
    """The stacks of all ranks; ranks with the same one together."""
    texts = dict.fromkeys(sorted(silent), "left no heartbeat: it has ended, or sees another run folder\n")
    for rank, beat in beats.items():
        texts[rank] = f"{'when last heard of, ' if rank in silent else ''}in {beat.phase}:\n{beat.stack}"
    return "".join(f"{ranks}, {text}" for text, ranks in ranks_by_text(texts).items())


def ranks_by_text(texts: Mapping[int, str]) -> dict[str, str]:
    """For each text the ranks that have it, in words."""
    ranks = defaultdict(list)
    for rank, text in texts.items():
        ranks[text].append(rank)
    return {text: named(found) for text, found in ranks.items()}


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
