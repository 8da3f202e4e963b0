import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits files of other processes"),
    pytest.mark.timeout(60),  # that the loop ends is what is tested
]


@pytest.fixture
def tool(repository, monkeypatch):
    spec = importlib.util.spec_from_file_location("soak", repository / "tools" / "soak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)  # the test runner has its own handlers
    monkeypatch.setattr(module, "write_pairs", lambda folder: folder / "manifest.parquet")
    return module


def stand_in(fails=lambda run: False, result=lambda run: "weights", strikes=lambda run: True):
    """A `Run` without processes: it ends with its third start, or with the first one that meets no fault.

    Args:
        fails: whether the next start of a run fails on its own, before a fault strikes.
        result: what a run ended with.
        strikes: whether a fault strikes the next start.
    """

    class Run:
        def __init__(self, folder, manifest, case, steps, seed=0, launcher=(), figures=None):
            self.folder, self.case, self.launcher, self.figures = folder, case, launcher, figures
            self.starts, self.failed = 0, False

        def finish(self):
            self.starts += 1

        def meet(self, fault):
            self.starts += 1
            self.figures.starts += 1
            if fails(self):
                self.figures.problems.append(f"{self.folder.name}: ended with status 1 without a fault")
                self.failed = True
                return True
            struck = fault is not None and strikes(self)
            if struck:
                self.figures.faults[fault.name] += 1
                self.figures.longest[fault.name] = 1.25
            return struck and self.starts < 3

        def steps(self):
            return [{}] * self.starts

        def result(self):
            assert not self.failed, "there is nothing to compare"
            return result(self)

    return Run


def soak(tool, monkeypatch, run, *options):
    monkeypatch.setattr(tool, "Run", run)
    monkeypatch.setattr("sys.argv", ["soak.py", *options])
    return tool.main()


def test_runs_that_end_as_the_undisturbed_one_are_counted(tool, monkeypatch, tmp_path, capsys):
    options = ["--kills", "12", "--case", "one", "ddp", "--output", str(tmp_path / "figures.md")]
    assert soak(tool, monkeypatch, stand_in(), *options) == 0
    table = (tmp_path / "figures.md").read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    ends = {row[0]: row[1:] for row in rows}
    kills = sum(int(ends[fault.name][0]) for fault in tool.KILLS if fault.name in ends)
    assert kills >= 12
    assert f" starts, {kills} kills, 0 steps repeated" in table
    assert {row[2] for row in rows if row[0] in {fault.name for fault in tool.KILLS}} == {"1.2"}
    for case in ("one", "ddp"):
        runs, equal = map(int, ends[case])
        assert runs == equal > 0


def test_every_other_round_runs_under_torchrun_but_a_single_process_never(tool, monkeypatch):
    seen = []
    run = stand_in(result=lambda run: seen.append((run.case, len(run.launcher) > 1)))
    assert soak(tool, monkeypatch, run, "--kills", "20", "--case", "one", "ddp") == 0
    assert {("one", False), ("ddp", False), ("ddp", True)} <= set(seen)
    assert ("one", True) not in seen


def test_a_run_whose_every_resume_fails_ends_the_loop_and_is_not_equal(tool, monkeypatch, capsys):
    run = stand_in(fails=lambda run: run.starts > 1)
    assert soak(tool, monkeypatch, run, "--kills", "3", "--case", "ddp") == 1
    out = capsys.readouterr().out
    assert "PROBLEM: ddp-0: ended with status 1 without a fault" in out
    (row,) = [line for line in out.splitlines() if line.startswith("| ddp |")]
    assert row.endswith("| 0 |")


def test_another_result_is_told(tool, monkeypatch, capsys):
    run = stand_in(result=lambda run: "undisturbed" in run.folder.name)
    assert soak(tool, monkeypatch, run, "--kills", "1", "--case", "one") == 1
    assert "| one | 1 | 0 |" in capsys.readouterr().out


def test_nothing_compared_is_no_success(tool, monkeypatch, capsys):
    def stop(run):
        raise tool.Stop

    assert soak(tool, monkeypatch, stand_in(fails=stop), "--case", "one") == 1
    assert "1 starts, 0 kills" in capsys.readouterr().out


class Job:
    """A job that ended on its own before its fault's moment."""

    def __init__(self, folder: Path, status: int) -> None:
        self.log, self.main = folder / "log", self
        self.log.write_text("")
        self.returncode = status

    def poll(self):
        return self.returncode

    def wait(self, seconds):
        return 0.0

    def kill(self):
        pass

    started = 0.0


@pytest.mark.parametrize(("status", "words"), [(1, "ended with status 1"), (0, "ended with status 0 before")])
def test_a_start_that_ends_unfinished_before_its_fault_has_failed(tool, monkeypatch, tmp_path, status, words):
    from tools.faults import run as harness

    monkeypatch.setattr(harness, "Job", lambda command, log: Job(tmp_path, status))
    run = harness.Run(tmp_path / "run", tmp_path / "manifest.parquet", "one", 8)
    assert not run.failed
    assert run.meet(tool.KILLS[1])
    assert run.failed
    assert len(run.figures.problems) == 1
    assert words in run.figures.problems[0]
    (run.folder / "checkpoints" / "step-000008").mkdir(parents=True)
    assert not run.meet(None)
    assert not run.failed
