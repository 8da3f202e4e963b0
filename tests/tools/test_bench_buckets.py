import importlib.util
import sys

import pytest
import yaml


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("bench_buckets", repository / "tools" / "bench_buckets.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_buckets_are_those_of_fine_tuning(tool, repository):
    config = yaml.safe_load((repository / "configs" / "sft.yaml").read_text())
    assert [list(bucket) for bucket in tool.BUCKETS] == config["data"]["init_args"]["buckets"]
    assert [len(rows) for rows in tool.members()] == [4000, 2000, 1000, 500, 1500, 500, 500]


@pytest.mark.parametrize(
    ("sequence_parallel", "options"),
    [
        (8, {"batch": 12}),  # the paper's
        (8, {"batch": 12, "micro_steps": 2, "micro_tokens": 57_600}),
        (8, {"batch": 1, "batch_tokens": 12 * 57_600}),
        (1, {"batch": 64}),
        (1, {"batch": 1, "batch_tokens": 64 * 57_600, "micro_steps": 5, "micro_tokens": 57_600}),
    ],
)
def test_no_process_of_64_waits_and_no_row_is_lost(tool, sequence_parallel, options):
    result = tool.simulate(64, sequence_parallel, **options)
    print(result)
    assert result.idle <= 0.03
    assert result.dropped == 0
    assert result.waiting <= 7 * result.samples[2]  # less than a step of each bucket
    if "batch_tokens" not in options:
        assert result.samples[1] == pytest.approx(options["batch"], rel=0.02)
    if (budget := options.get("micro_tokens")) is not None:
        assert result.tokens[2] <= budget / sequence_parallel


def test_an_uneven_share_is_seen(tool, monkeypatch):
    """What the figure would be if the first group had a sample more than the others: it measures something."""

    class Uneven(tool.BucketBatchSampler):
        def micro_batch(self, number):
            batch = super().micro_batch(number)
            return batch + batch[:1] if self.rank == 0 else batch

    monkeypatch.setattr(tool, "BucketBatchSampler", Uneven)
    assert tool.simulate(64, 8, 8, rows=1000).idle == pytest.approx(1 - 9 / 16)


def test_what_64_processes_cannot_share_is_refused(tool):
    with pytest.raises(ValueError, match="12 samples of bucket 480x768x77 is too small for 64 groups"):
        tool.simulate(64, 1, 12)


def test_the_table(tool, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_buckets.py", "--rows", "1000", "--gpus", "16", "--batch", "12"])
    tool.main()
    out = capsys.readouterr().out
    assert "| 16   |  8 |     12 samples |   1.00 |" in out
    assert "16 GPUs, SP 1, 12 samples: A batch of 12 samples of bucket 480x768x77 is too small" in out
