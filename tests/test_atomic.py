import os

import pytest

from icve.atomic import write_text


def test_writes_the_text_and_its_folder_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "new" / "file.txt", "σ")
    assert path.read_text(encoding="utf-8") == "σ"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]
