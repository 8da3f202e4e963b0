"""tools/bench_manifest.py makes manifests that training takes whole."""

import importlib.util

import pytest

from icve.data.buckets import Bucket
from icve.data.manifest import read_manifest
from icve.data.selection import select


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_every_row_can_be_drawn(repository, tmp_path, name):
    spec = importlib.util.spec_from_file_location("bench_manifest", repository / "tools" / "bench_manifest.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.write_rows(tmp_path / name, 500)
    manifest = read_manifest(tmp_path / name)
    assert len({row["id"] for row in manifest}) == 500
    selection = select(manifest, [Bucket.parse(bucket) for bucket in tool.BUCKETS])
    assert len(selection.pairs) == 500
    assert [len(rows) > 0 for rows in selection.members(3)] == [True, True, True]
