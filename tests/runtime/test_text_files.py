from icve.runtime.text_files import not_utf8


def test_the_first_wrong_byte_is_named_with_its_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes("steps: 3\n# café\n".encode("latin-1"))
    assert not_utf8(file) == f"{file} is not UTF-8 (byte 0xe9 in line 2): save it as UTF-8."
    file.write_text("# café\n", encoding="utf-8")
    assert not_utf8(file) is None
