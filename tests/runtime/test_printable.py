import io
import json
import sys

import pytest

from icve.runtime.printable import as_text, forgive_output, is_text, json_line

ODD = "✓ ▶ – “x” é 中 \udce9 \ud800"


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b'+ > - "x" \\xe9 \\u4e2d \\xe9 \\ud800'),
        ("latin-1", b'+ > - "x" \xe9 \\u4e2d \\xe9 \\ud800'),
        ("utf-8", "✓ ▶ – “x” é 中 ".encode() + b"\\xe9 \\ud800"),
        ("utf-16-le", "✓ ▶ – “x” é 中 \\xe9 \\ud800".encode("utf-16-le")),
    ],
)
def test_every_encoding_prints_everything(monkeypatch, encoding, printed):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    forgive_output()
    for stream in (sys.stdout, sys.stderr):
        stream.write(ODD)
        stream.flush()
        assert stream.buffer.getvalue() == printed


def test_streams_that_are_none_or_closed_are_left_alone(monkeypatch):
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", None)
    forgive_output()


def test_what_is_no_text_is_spelled_out():
    assert is_text("caf\u00e9\u2028\n")
    assert not is_text("caf\udce9")
    assert as_text("caf\u00e9") == "caf\u00e9"
    assert as_text({"a\ud83d": ["caf\udce9", 1, None, ("x",)]}) == {"a\\ud83d": ["caf\\xe9", 1, None, ["x"]]}


@pytest.mark.parametrize("value", ["plain", "中", "caf\udce9", "\ud83d", "a\u2028b\nc"])
def test_lines_of_json_are_utf8_and_one_line_and_read_back_the_same(value):
    line = json_line({"id": value})
    assert line.encode().count(b"\n") == 1
    assert json.loads(line.encode()) == {"id": value}
