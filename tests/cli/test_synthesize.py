import pytest

from icve.cli.synthesize import main
from icve.data.manifest import read_manifest
from icve.synthetic.events import read_events


def test_pairs_default_to_the_test_split(tmp_path, capsys):
    arguments = ["pairs", "--seed", "1", "--count", "2", "--output", str(tmp_path), "--size", "48x64", "--frames", "5"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "manifest.parquet")
    rows = read_manifest(tmp_path / "manifest.parquet")
    assert [(row["split"], row["height"], row["width"], row["source_frames"]) for row in rows] == [
        ("test", 48, 64, 5)
    ] * 2


def test_raw(tmp_path):
    assert main(["raw", "--split", "train", "--seed", "1", "--count", "1", "--output", str(tmp_path)]) == 0
    assert len(read_events(tmp_path / "events.jsonl")) == 1


@pytest.mark.parametrize("bad", [["--size", "64"], ["--size", "60x60"], ["--count", "0"], ["--split", "all"]])
def test_usage_errors_exit_with_2(tmp_path, capsys, bad):
    arguments = ["pairs", "--seed", "1", "--count", "1", "--output", str(tmp_path / "out"), *bad]
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert capsys.readouterr().err.strip()
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["pairs", "--seed", "1", "--count", "1", "--output", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "icve synthesize pairs --split train" in capsys.readouterr().out
