"""What an import wrote, read back and checked."""

import pyarrow.parquet as pq

from icve.data.manifest import read_manifest, resolve_path


def rows_of(report):
    return list(read_manifest(report.manifest))


def rejections(report):
    return [row for part in sorted(report.rejections.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def checked(report, source):
    """The rows; every record is accounted for, and every path leads to its file."""
    rows = rows_of(report)
    assert report.read == report.kept + sum(report.rejected.values())
    assert report.kept == len(rows) == sum(report.types.values())
    assert len(rejections(report)) == sum(report.rejected.values())
    root = read_manifest(report.manifest).root
    assert root == source
    for row in rows:
        for name, value in row.items():
            if name.endswith("_path") and value is not None:
                assert resolve_path(root, value).is_file()
    return rows
