"""Kill, stop, starve and damage training runs again and again, and see whether they end as ones left alone.

    python tools/soak.py --kills 100
    python tools/soak.py --kills 10 --case zero2 fsdp --seed 3 --output figures.md

A run of a tiny model meets one fault per start and is started again with `--ckpt_path RUN`, as a scheduler does, until
it has ended; then its losses, samples, state and weights must equal those of an undisturbed run, bit for bit. A start
that fails without a fault ends its run, which then counts as not equal. The last process of a job must be gone a minute
after its fault. SIGTERM and Ctrl-C end it with what was seen so far. Exit status 1 when anything differs, fails or
hangs, or when no run was compared. Linux only.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script

from tools.faults.faults import DISK, KILLS, STOP
from tools.faults.run import CASES, Figures, Run, write_pairs

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
OTHERS = 0.15  # share of faults that are no kills


class Stop(Exception):
    """No more faults: what was seen so far is to be told."""


def soak(
    kills: int, cases: list[str], steps: int, seed: int, folder: Path, figures: Figures, equal: dict[str, list[bool]]
) -> None:
    """Let runs of all cases in turn meet faults until there were enough kills.

    Args:
        kills: how many.
        cases: names from CASES.
        steps: of every run.
        seed: of faults, moments and victims.
        folder: for the runs.
        figures, equal: to fill: what was seen, and by case whether each run ended like the undisturbed one.
    """
    manifest = write_pairs(folder / "pairs")
    draw, truth, number = random.Random(seed), {}, 0
    while killed(figures) < kills:
        case = cases[number % len(cases)]
        if case not in truth:
            undisturbed = Run(folder / f"{case}-undisturbed", manifest, case, steps)
            undisturbed.finish()
            truth[case] = undisturbed.result()
        # Every other round under torchrun.
        launcher = TORCHRUN if number // len(cases) % 2 and case != "one" else (sys.executable,)
        run = Run(folder / f"{case}-{number}", manifest, case, steps, draw.randrange(1 << 30), launcher, figures)
        # A run that fails without a fault would fail for ever: nothing can strike it any more.
        while meet_one(run, draw, case, killed(figures) < kills) and not run.failed:
            print(f"{killed(figures)} of {kills} kills", *figures.problems[-1:], flush=True)
        equal[case].append(not run.failed and run.result() == truth[case])
        number += 1


def meet_one(run: Run, draw: random.Random, case: str, disturbed: bool) -> bool:
    """A start; whether there is still something to do."""
    fault = draw.choice([DISK, STOP] if draw.random() < OTHERS and case != "one" else KILLS) if disturbed else None
    start = time.monotonic()
    unfinished = run.meet(fault)
    seconds, steps = time.monotonic() - start, len(run.steps())
    print(f"{run.folder.name}: {fault.name if fault else 'undisturbed'}, {seconds:.0f} s, at step {steps}", flush=True)
    return unfinished


def killed(figures: Figures) -> int:
    return sum(figures.faults[fault.name] for fault in KILLS)


def table(figures: Figures, equal: dict[str, list[bool]]) -> str:
    """Markdown."""
    lines = ["| fault | times | longest until the job had ended, s |", "|---|---|---|"]
    lines += [f"| {name} | {times} | {figures.longest[name]:.1f} |" for name, times in sorted(figures.faults.items())]
    lines += ["", "| case | runs | equal to the undisturbed one |", "|---|---|---|"]
    lines += [f"| {case} | {len(runs)} | {sum(runs)} |" for case, runs in equal.items()]
    summary = f"{figures.starts} starts, {killed(figures)} kills, {figures.repeated} steps repeated"
    return "\n".join([*lines, "", summary, *(f"PROBLEM: {problem}" for problem in figures.problems)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=100, help="in all; the cases take turns, so that few kills reach few of them"
    )
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="strategies, in two processes")
    parser.add_argument("--steps", type=int, default=60, help="of every run")
    parser.add_argument("--seed", type=int, default=0, help="of faults, moments and victims")
    parser.add_argument("--folder", type=Path, help="an empty one for the runs, kept (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()

    def stop(*_: object) -> None:
        raise Stop

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    figures, equal = Figures(), {case: [] for case in args.case}
    with tempfile.TemporaryDirectory() as temporary, suppress(Stop):
        soak(args.kills, args.case, args.steps, args.seed, args.folder or Path(temporary), figures, equal)
    text = table(figures, equal)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    return int(bool(figures.problems) or not any(equal.values()) or not all(all(runs) for runs in equal.values()))


if __name__ == "__main__":
    sys.exit(main())
