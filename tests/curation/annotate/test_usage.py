"""Costs add up over processes, whatever happened to them."""

import multiprocessing

import pytest

from icve.curation.annotate.usage import Usage, UsageLog, total_usage


def spend(folder):
    for _ in range(20):
        UsageLog(folder).add("large", Usage(1, 0, 0, 10, 2, 0.5))


def test_usage_adds_up_by_model(tmp_path):
    log = UsageLog(tmp_path)
    log.add("small", Usage(requests=1, input_tokens=100, output_tokens=7, cost=0.25))
    log.add("small", Usage(kept=1))
    log.add("large", Usage(requests=1, unmetered=1))
    totals = total_usage(tmp_path)
    assert totals == {"small": Usage(1, 1, 0, 100, 7, 0.25), "large": Usage(1, 0, 1)}
    assert "cost 0.25" in str(totals["small"])
    assert total_usage(tmp_path / "elsewhere") == {}


def test_a_torn_line_is_left_out(tmp_path):
    UsageLog(tmp_path).add("small", Usage(requests=1, input_tokens=5))
    (file,) = (tmp_path / "usage").iterdir()
    whole = file.read_text()
    file.write_text(whole + "\x00\x00" + whole[: len(whole) // 2] + "\n[1]\n" + whole)
    assert total_usage(tmp_path)["small"] == Usage(requests=2, input_tokens=10)


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_processes_write_side_by_side(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=spend, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert total_usage(tmp_path)["large"] == Usage(80, 0, 0, 800, 160, pytest.approx(40.0))
    assert len(list((tmp_path / "usage").iterdir())) == 4
