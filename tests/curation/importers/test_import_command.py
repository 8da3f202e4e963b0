from argparse import ArgumentParser

from icve.curation.importers.import_command import add_arguments, run


def test_command(put, tmp_path, capsys):
    table = "before;after;text\na.mp4;b.mp4;Remove it\na.mp4;c.mp4;Remove it\n"
    source = put(files={"k.csv": table, "videos/a.mp4": True, "videos/b.mp4": True})
    parser = ArgumentParser()
    add_arguments(parser)
    words = ["csv", str(source), "--output", str(tmp_path / "out"), "--columns", "before=source_path"]
    words += ["after=target_path", "text=instruction", "--folders", "source_path=videos", "target_path=videos"]
    assert run(parser.parse_args(words)) == 3
    printed = capsys.readouterr().out
    assert "2 records = 1 rows + 1 rejected" in printed
    assert "remove" in printed
    assert "missing file" in printed
    assert run(parser.parse_args([*words, "--limit", "1"])) == 0
    assert run(parser.parse_args([*words[:4], "--columns", "before"])) == 2
    assert "between" in capsys.readouterr().err


def test_following_what_it_advises_imports_the_set(put, tmp_path, capsys):
    source = put(
        files={
            "lists/all.csv": "before;after;text\na.mp4;b.mp4;Remove it\n",
            "notes.csv": "day,what\n1,shot\n",
            **{f"{name}.mp4": True for name in ("a", "b")},
        }
    )
    parser = ArgumentParser()
    add_arguments(parser)

    def imported(*words):
        status = run(parser.parse_args(["csv", str(source), "--output", str(tmp_path / "out"), *words]))
        return status, capsys.readouterr().err

    status, said = imported()
    assert status == 2
    assert "choose other tables with --tables" in said
    status, said = imported("--tables", "lists/*.csv")
    assert status == 2
    assert "it has before, after, text): say with --columns what its columns are, as in video=source_path" in said
    columns = ["--columns", "before=source_path", "after=target_path", "text=instruction"]
    assert imported("--tables", "lists/*.csv", *columns)[0] == 0
