"""`icve edit`: one sentence for everything a user can get wrong, and nothing done twice or lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icve.cli import edit
from icve.data.media import sound
from icve.data.media.png_frames import iterate_png_frames
from icve.data.media.video import VideoWriter, probe, read_frames, timestamps, write_video
from icve.data.media.video_formats import FORMATS
from icve.editing.results import ResultLog
from tests.browser import probe_page
from tests.data.media.test_sound import process, tones, with_sound
from tests.tiny import tiny_editor


def run(model, source, output, *options, instruction="make it red") -> int:
    arguments = ["--model", model, "--input", source, "--output", output, *options]
    arguments += ["--instruction", instruction] if instruction is not None else []
    return edit.main([str(argument) for argument in arguments])


def results(folder: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def manifest(folder: Path, rows: list[dict], name: str = "edits.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_one_video(tiny_model, make_clip, tmp_path, capsys):
    clip = make_clip("clip.mp4", frames=12, size=(48, 80))
    out = tmp_path / "out"
    assert run(tiny_model, clip, out, "--steps", 1, "--seed", 4, instruction=" make it red ") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["edited"], summary["failed"], summary["kept"]) == (1, 0, 0)
    row = results(out)["clip"]
    assert row["output"] == "clip.mp4"
    assert (row["instruction"], row["seed"], row["status"], row["error"]) == ("make it red", 4, "ok", None)
    assert (row["frames"], row["windows"], row["settings"]["num_inference_steps"]) == (12, 3, 1)
    before, after = probe(clip), probe(out / "clip.mp4")
    assert (after.frames, after.fps, after.width, after.height) == (before.frames, before.fps, 80, 48)
    assert (read_frames(out / "clip.mp4").astype(int) - read_frames(clip)).any()
    assert visible(out) == ["clip.mp4", "results.jsonl"]


def test_same_seed_same_file(tiny_model, make_clip, tmp_path, capsys):
    clip = make_clip("clip.mp4", frames=12)
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(tiny_model, clip, tmp_path / name, "--seed", seed) == 0
        made.append((tmp_path / name / "clip.mp4").read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_rerun_does_what_is_missing_or_changed(tiny_model, make_clip, tmp_path, capsys):
    for number in range(3):
        make_clip(f"{number}.mp4", seed=number)
    rows = [{"id": str(n), "source_path": f"{n}.mp4", "instruction": f"do {n}"} for n in range(3)]
    out, path = tmp_path / "out", manifest(tmp_path, rows)

    def edited(*options) -> set[str]:
        times = {file.name: file.stat().st_mtime_ns for file in out.glob("*.mp4")} if out.exists() else {}
        assert run(tiny_model, path, out, *options, instruction=None) == 0
        capsys.readouterr()
        return {file.name for file in out.glob("*.mp4") if times.get(file.name) != file.stat().st_mtime_ns}

    assert edited() == {"0.mp4", "1.mp4", "2.mp4"}
    assert edited() == set()
    (out / "1.mp4").unlink()
    assert edited() == {"1.mp4"}
    rows[2]["instruction"] = "do something else"
    manifest(tmp_path, rows)
    assert edited() == {"2.mp4"}
    make_clip("0.mp4", seed=9)
    assert edited() == {"0.mp4"}
    assert edited("--steps", 1) == {"0.mp4", "1.mp4", "2.mp4"}
    assert {row["status"] for row in results(out).values()} == {"ok"}


def test_shards_fill_one_folder(tiny_model, make_clip, tmp_path, capsys):
    for number in range(3):
        make_clip(f"{number}.mp4", seed=number)
    rows = [{"id": f"{n}{k}", "source_path": f"{n}.mp4", "instruction": f"do {k}"} for n in range(3) for k in range(2)]
    path = manifest(tmp_path, rows)
    for part in ("2/2", "1/2"):
        assert run(tiny_model, path, tmp_path / "out", "--shard", part, instruction=None) == 0
    assert len(results(tmp_path / "out")) == 6
    assert run(tiny_model, path, tmp_path / "out", instruction=None) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 6


def test_variable_rate_pixel_aspect_and_both_sizes(tiny_model, tmp_path, capsys):
    from fractions import Fraction

    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    times = np.array([0, 100, 130, 400, 420, 900, 1000])
    with VideoWriter(tmp_path / "a.mp4", 10, Fraction(1, 1000), sample_aspect=Fraction(4, 3)) as writer:
        writer.write(frames, times)
    for size in ("source", "model"):
        assert run(tiny_model, tmp_path / "a.mp4", tmp_path / size, "--size", size) == 0
        assert np.allclose(timestamps(tmp_path / size / "a.mp4"), times / 1000, atol=1e-3)
    source, model = (probe(tmp_path / size / "a.mp4") for size in ("source", "model"))
    assert (source.height, source.width, source.sample_aspect) == (64, 128, 1)
    assert (model.height, model.width) == (32, 64) or (model.height, model.width) == (16, 32)
    assert abs(model.displayed[1] / model.displayed[0] - 2) < 0.02


def test_lost_sound_is_told_and_costs_no_picture(tiny_model, tmp_path, monkeypatch, capsys):
    with_sound(tmp_path / "in" / "a.mp4", "aac", tones("mono"), "mono")
    with_sound(tmp_path / "in" / "b.mov", "pcm_s16le", tones("7.1"), "7.1")
    start = sound.start

    def crash_on_b(source, *arguments, **options):
        return process("import os; os.abort()") if "b.mov" in source else start(source, *arguments, **options)

    monkeypatch.setattr(sound, "start", crash_on_b)
    assert run(tiny_model, tmp_path / "in", tmp_path / "out", "--steps", 1) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert (summary["edited"], summary["failed"], summary["with_notes"]) == (2, 0, 1)
    assert "note: b: The sound is left out" in printed.err
    assert results(tmp_path / "out")["a"]["note"] is None
    assert "left out" in results(tmp_path / "out")["b"]["note"]
    assert visible(tmp_path / "out") == ["a.mp4", "b.mp4", "results.jsonl"]


def test_side_by_side(tiny_model, make_clip, tmp_path, capsys):
    clip = make_clip("a.mp4", frames=12, size=(48, 80))
    assert run(tiny_model, clip, tmp_path / "out", "--side-by-side") == 0
    both = read_frames(tmp_path / "out" / "side_by_side" / "a.mp4").astype(int)
    assert both.shape == (12, 48, 160, 3)
    assert np.abs(both[:, :, :80] - read_frames(clip)).mean() < 6
    assert np.abs(both[:, :, 80:] - read_frames(tmp_path / "out" / "a.mp4")).mean() < 6


def test_dry_run_writes_nothing_and_says_what_it_would_do(tiny_model, make_clip, tmp_path, capsys):
    make_clip("a.mp4", frames=12, size=(48, 80))
    make_clip("b.mp4")
    (tmp_path / "c.mp4").write_bytes(b"text")
    assert run(tiny_model, tmp_path, tmp_path / "out", "--dry-run") == 3
    said = capsys.readouterr().out
    assert "1 edits of 1 clips of 80x48: edited at 80x48 in 3 windows of 5 frames" in said
    assert "1 edits of 1 clips of 32x32: edited at 32x32 in 1 windows of 5 frames" in said
    assert "would fail: c:" in said
    assert "2 edits into" in said
    assert not (tmp_path / "out").exists()


def test_a_shift_that_depends_on_the_size_is_the_window_s(make_clip, tmp_path, capsys):
    tiny_editor(shift=2.0, shift_tokens=2).save_pretrained(tmp_path / "model")
    clip = make_clip("clip.mp4", size=(32, 32))  # windows of 8 tokens
    assert run(tmp_path / "model", clip, tmp_path / "out", "--dry-run") == 0
    made = []
    for options in ((), ("--shift", 4), ("--shift", 2)):
        out = tmp_path / "_".join(map(str, ("out", *options)))
        assert run(tmp_path / "model", clip, out, *options) == 0
        made.append((out / "clip.mp4").read_bytes())
    assert made[0] == made[1] != made[2]
    assert results(tmp_path / "out")["clip"]["settings"]["shift"] is None


def test_a_solver_is_asked_for_on_the_command_line_or_in_a_file(make_clip, tmp_path, capsys):
    tiny_editor(steps=3).save_pretrained(tmp_path / "model")
    clip = make_clip("clip.mp4", frames=12, size=(32, 32))  # several windows, together
    (tmp_path / "edit.yaml").write_text("solver: unipc\n")
    made = []
    for number, options in enumerate(((), ("--solver", "unipc"), ("--config", tmp_path / "edit.yaml"))):
        assert run(tmp_path / "model", clip, tmp_path / f"{number}", *options) == 0
        made.append((tmp_path / f"{number}" / "clip.mp4").read_bytes())
    assert made[0] != made[1] == made[2]
    assert results(tmp_path / "1")["clip"]["settings"]["solver"] == "unipc"


def test_report_page_shows_what_was_edited(tiny_model, make_clip, tmp_path, capsys):
    make_clip("a.mp4", frames=12, size=(47, 81))
    (tmp_path / "b.mp4").write_bytes(b"text")
    assert run(tiny_model, tmp_path, tmp_path / "out", "--report", 5, instruction="<script>alert(1)</script>") == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article") == 1
    assert "<script>alert" not in page
    assert "cannot be decoded" in page


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_a_real_clip_by_the_shipped_editor(name, shared_data, tmp_path, capsys):
    source = shared_data / "videos" / "pairs" / "replace_swan_cat_source.mp4"
    row = {"id": "swan", "source_path": source.name, "source_frames": 9, "instruction": "apply the sepia style"}
    out, path = tmp_path / "out", manifest(tmp_path, [row])
    arguments = ["--input", path, "--root", source.parent, "--output", out, "--format", name]
    arguments = [str(argument) for argument in [*arguments, "--side-by-side", "--report", 1]]
    assert edit.main(arguments) == 0
    result = out / results(out)["swan"]["output"]
    assert result.name == f"swan{FORMATS[name].suffix}"
    assert visible(out) == sorted(["report.html", "results.jsonl", "side_by_side", result.name])
    assert [file.name for file in (out / "side_by_side").iterdir()] == ["swan.mp4"]
    edited = np.stack(list(iterate_png_frames(result))) if result.is_dir() else read_frames(result)
    before = read_frames(source, count=9)
    assert edited.shape == before.shape
    # Sepia: red over green over blue everywhere, whatever the picture was.
    red, green, blue = edited.mean((0, 1, 2))
    assert red > green + 5 > blue + 10
    beside = read_frames(out / "side_by_side" / "swan.mp4")[:, :, before.shape[2] :]
    assert np.abs(beside.astype(int) - edited).mean() < 4
    page = (out / "report.html").read_text()
    assert (page.count("<article"), "swan" in page) == (1, True)
    capsys.readouterr()
    assert edit.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["edited"], summary["kept"], summary["with_notes"]) == (0, 1, 0)


def test_another_format_is_edited_again_and_leaves_what_is_there(tiny_model, make_clip, tmp_path, capsys):
    clip, out = make_clip("a.mp4", frames=5), tmp_path / "out"

    def edited(name) -> int:
        assert run(tiny_model, clip, out, "--format", name) == 0
        return json.loads(capsys.readouterr().out)["edited"]

    assert [edited(name) for name in ("mp4", "mp4", "png", "png")] == [1, 0, 1, 0]
    assert visible(out) == ["a.frames", "a.mp4", "results.jsonl"]
    shutil.rmtree(out / "a.frames")
    assert [edited("png"), edited("png")] == [1, 0]


def test_frames_of_an_item_that_fails_now_are_removed_and_a_folder_of_the_users_is_not(
    tiny_model, make_clip, tmp_path, capsys
):
    for name in ("a.mp4", "b.mp4"):
        make_clip(name, frames=5)
    out = tmp_path / "out"
    (out / "b.frames").mkdir(parents=True)
    (out / "b.frames" / "notes.txt").write_text("mine")
    assert run(tiny_model, tmp_path, out, "--format", "png") == 3
    assert "b.frames' is not a folder of frames alone: move it away" in results(out)["b"]["error"]
    (tmp_path / "a.mp4").write_bytes(b"none")
    assert run(tiny_model, tmp_path, out, "--format", "png") == 3
    assert visible(out) == ["b.frames", "results.jsonl"]
    assert (out / "b.frames" / "notes.txt").read_text() == "mine"


def test_options_from_yaml(tiny_model, make_clip, tmp_path, capsys):
    config = tmp_path / "edit.yaml"
    clip = make_clip("a.mp4")
    config.write_text(f"model: {tiny_model}\ninput: {clip}\ninstruction: make it red\nsteps: 1\nside-by-side: true\n")
    assert edit.main(["--config", str(config), "--output", str(tmp_path / "out"), "--seed", "3"]) == 0
    row = results(tmp_path / "out")["a"]
    assert (row["settings"]["num_inference_steps"], row["seed"]) == (1, 3)
    assert (tmp_path / "out" / "side_by_side" / "a.mp4").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stepps: 3", "has no option 'stepps'; the nearest is 'steps'"),
        ("steps: many", "'many' is no value for 'steps'"),
        ("format: gif", "'gif' is no value for 'format' (one of mp4, prores4444, vp9, png)"),
        ("size: huge", "'huge' is no value for 'size' (one of source, model)"),
        ("side_by_side: 3", "is no value for 'side_by_side' (true or false)"),
        ("- a", "must hold options by name"),
        ("a: [", "is not YAML"),
        ("steps: 3\n# café".encode("latin-1"), "edit.yaml is not UTF-8 (byte 0xe9 in line 2)"),
    ],
)
def test_wrong_yaml(content, message, tmp_path, capsys):
    (tmp_path / "edit.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert edit.main(["--config", str(tmp_path / "edit.yaml")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "absent"], "model folder absent does not exist"),
        (["--input", "absent.mp4"], "input absent.mp4 does not exist"),
        (["--instruction", "  "], "instruction is empty"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--shift", "0"], "--shift must be positive"),
        (["--window", "6"], "--window must be 4k+1"),
        (["--shard", "3/2"], "shard is i/n"),
        (["--columns", "a"], "--columns takes pairs"),
        (["--device", "abacus"], "There is no device 'abacus' here"),
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
    ],
)
def test_usage_errors_are_one_sentence(options, message, tiny_model, make_clip, tmp_path, capsys):
    instruction = None if "--instruction" in options else "make it red"
    assert run(tiny_model, make_clip("a.mp4"), tmp_path / "out", *options, instruction=instruction) == 2
    captured = capsys.readouterr()
    assert message in captured.err.strip().splitlines()[-1]
    assert captured.out == ""
    assert not list(tmp_path.glob("out/*.mp4"))


def test_missing_column_is_named(tiny_model, tmp_path, capsys):
    path = manifest(tmp_path, [{"source_path": "a.mp4", "prompt": "do"}])
    assert run(tiny_model, path, tmp_path / "out", instruction=None) == 2
    assert "instruction" in capsys.readouterr().err


def unreadable_model(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def truncated_model(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def mismatched_model(folder: Path) -> None:
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config | {"text_embed_dim": 48}))


def componentless_model(folder: Path) -> None:
    shutil.rmtree(folder / "codec")


@pytest.mark.parametrize("damage", [unreadable_model, truncated_model, mismatched_model, componentless_model])
def test_damaged_models_are_named(damage, tiny_model, make_clip, tmp_path, capsys):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    assert run(folder, make_clip("a.mp4"), tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"icve edit: The model in {folder} cannot be loaded: ")
    if damage is mismatched_model:  # the first tensor that does not fit, and both shapes
        assert "text_embedder.linear_1.weight' is (16, 32) where the model has (16, 48)" in error


def test_output_that_cannot_be_is_found_out_before_editing(tiny_model, make_clip, tmp_path, capsys):
    clip = make_clip("a.mp4")
    blocked = tmp_path / "file"
    blocked.touch()
    assert run(tiny_model, clip, blocked) == 2
    assert f"The output folder {blocked} cannot be written to" in capsys.readouterr().err
    before = clip.read_bytes()
    assert run(tiny_model, clip, clip.parent) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert clip.read_bytes() == before
    moved = clip.rename(clip.with_suffix(".webm"))
    assert run(tiny_model, moved, clip.parent, "--format", "vp9") == 2
    assert "would replace the input" in capsys.readouterr().err
    assert moved.read_bytes() == before


EDITED = {"odd_dims_351x199", "rotated_metadata_90", "one_frame", "timestamp_gap_60s"}


def test_bad_files_of_every_kind(tiny_model, shared_data, tmp_path, capsys):
    """Odd sizes, rotation, one frame and a gap in time are edited; the others fail with their reason, alone."""
    folder = shared_data / "videos" / "bad"
    assert run(tiny_model, folder, tmp_path, "--steps", 1) == 3
    rows = results(tmp_path)
    assert {name for name, row in rows.items() if row["status"] == "ok"} == EDITED
    assert len(rows) == len(list(folder.glob("*.mp4")))
    for name, row in rows.items():
        source = folder / f"{name}.mp4"
        if name not in EDITED:
            assert (
                row["error"].startswith(f"{source} cannot be decoded: it ") or "cannot be decoded: it" in row["error"]
            )
            assert not (tmp_path / f"{name}.mp4").exists()
            continue
        before, after = probe(source), probe(tmp_path / row["output"])
        assert after.frames == before.frames
        assert np.allclose(timestamps(tmp_path / row["output"]), timestamps(source), atol=2e-3)
        assert (after.height, after.width) == tuple(side + side % 2 for side in before.displayed)
        assert after.rotation == 0


def test_a_folder_of_odd_names_costs_nothing(tiny_model, make_clip, tmp_path, capsys, monkeypatch):
    clip = make_clip("clip.mp4")
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    names = ["12:30:00.mp4", "caf\udce9.mp4", "a\nb.mp4", "x\u2028y.mp4", "[red]z.mp4", "clip.MTS", "clip"]
    for name in names:
        shutil.copyfile(clip, raw / name)
    (raw / "notes.txt").write_text("none")
    (raw / "[b] :smile: caf\udce9.mp4").write_bytes(b"none")
    os.symlink("gone.mp4", raw / "broken.mp4")
    monkeypatch.chdir(tmp_path)
    arguments = ("raw", "out", "--steps", 1, "--report", 9)
    assert run(tiny_model, *arguments) == 3
    printed = capsys.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])
    assert (summary["edited"], summary["failed"], summary["left_out"]) == (7, 2, {"not a video": 1})
    assert "1 file is left out. not a video: 1 (notes.txt)" in printed.err
    assert "failed: [b] :smile: caf" in printed.err
    assert "raw/broken.mp4 is a broken link: there is no gone.mp4." in printed.err
    assert len(ResultLog(out).read()) == 9
    assert run(tiny_model, *arguments) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 7


@pytest.mark.slow
def test_every_name_can_be_printed_in_ascii(tmp_path):
    (tmp_path / "caf\udce9 – ✓.mp4").write_bytes(b"none")
    command = [sys.executable, "-m", "icve.cli.edit", "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--instruction", "x"], capture_output=True, env=environment)
    assert done.returncode == 3
    assert b"failed: caf\\xe9 - +: " in done.stderr


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_sigkill_costs_at_most_the_running_batch(tiny_model, make_clip, tmp_path):
    for number in range(40):
        make_clip(f"{number:02d}.mp4", frames=9, seed=number)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "icve.cli.edit", "--model", tiny_model, "--input", tmp_path, "--output", out]
    command = [str(word) for word in [*command, "--instruction", "make it red", "--steps", 40, "--batch-size", 3]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "results.jsonl"
    try:
        while not (log.exists() and log.read_text().count("\n") >= 5):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    recorded = {json.loads(line)["output"] for line in log.read_text().splitlines() if line.endswith("}")}
    assert 5 <= len(recorded) <= len(done) < 40
    assert len(done) - len(recorded) <= 3
    again = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert summary["kept"] == len(recorded)
    assert summary["edited"] == 40 - len(recorded)
    assert all((out / name).stat().st_mtime_ns == done[name] for name in recorded)
    assert len(results(out)) == 40
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on file sizes, which this system has not")
@pytest.mark.parametrize(("name", "limit"), [("mp4", 60_000), ("png", 20_000)])
def test_a_full_disk_fails_items_in_one_sentence(tiny_model, make_clip, tmp_path, name, limit):
    """A limit on the size of files stands for a full disk: the large result fails, the small one is made."""
    make_clip("small.mp4")
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "large.mp4", 10, crf=30) as writer:
        writer.write(rng.integers(0, 256, (40, 160, 160, 3), dtype=np.uint8))
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from icve.cli.edit import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "--model", tiny_model, "--input", tmp_path, "--output", tmp_path / "out"]
    command += ["--instruction", "x", "--steps", 1, "--side-by-side", "--format", name]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    rows = results(tmp_path / "out")
    assert rows["small"]["status"] == "ok"
    assert "cannot be written: File too large." in rows["large"]["error"]
    assert visible(tmp_path / "out") == ["results.jsonl", "side_by_side", f"small{FORMATS[name].suffix}"]


PLAY = """
  const video = document.querySelector("video"), canvas = document.createElement("canvas");
  const out = {levels: []}, times = [0.05, 0.65, 1.15];
  const fail = (event) => done({error: String(video.error && video.error.message)});
  video.addEventListener("error", fail);
  const next = () => {
    if (!times.length) {
      out.width = video.videoWidth; out.height = video.videoHeight; out.duration = video.duration;
      return done(out);
    }
    video.currentTime = times.shift();
  };
  video.addEventListener("seeked", () => {
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    out.levels.push(context.getImageData(4, 4, 1, 1).data[0]);
    next();
  });
  video.readyState >= 1 ? next() : video.addEventListener("loadedmetadata", next);
"""


@pytest.mark.slow
def test_a_result_plays_in_a_browser(tiny_model, tmp_path, capsys):
    frames = np.repeat(np.arange(12, dtype=np.uint8) * 16 + 30, 48 * 80 * 3).reshape(12, 48, 80, 3)
    write_video(tmp_path / "a.mp4", frames, 10)
    assert run(tiny_model, tmp_path / "a.mp4", tmp_path / "out") == 0
    edited = read_frames(tmp_path / "out" / "a.mp4")
    (tmp_path / "page").mkdir()
    shutil.copy(tmp_path / "out" / "a.mp4", tmp_path / "page" / "a.mp4")
    page = '<!doctype html><html><body><video src="a.mp4" muted preload="auto"></video></body></html>'
    found = probe_page(page, PLAY, tmp_path / "page")
    assert "error" not in found
    assert (found["width"], found["height"]) == (80, 48)
    assert abs(found["duration"] - 1.2) < 0.05
    shown = [int(edited[index, 4, 4, 0]) for index in (0, 6, 11)]
    assert all(abs(a - b) < 12 for a, b in zip(found["levels"], shown, strict=True)), (found, shown)


def test_help_needs_no_torch():
    code = "import sys, icve.cli.edit; icve.cli.edit.build_parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))


def test_a_picture_becomes_a_picture(tiny_model, tmp_path, capsys):
    colours = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours[:, ::-1]).save(tmp_path / "b.jpg")
    out = tmp_path / "out"
    options = ("--steps", 1, "--side-by-side", "--report", 1, "--format", "prores4444")
    assert run(tiny_model, tmp_path / "a.png", out, *options) == 0
    assert visible(out) == ["a.png", "report.html", "results.jsonl", "side_by_side"]
    assert results(out)["a"]["output"] == "a.png"
    edited = np.asarray(Image.open(out / "a.png"))
    assert edited.shape == colours.shape
    assert (edited.astype(int) - colours).any()
    beside = np.asarray(Image.open(out / "side_by_side" / "a.png"))
    assert np.array_equal(beside, np.concatenate([colours, edited], axis=1))
    assert run(tiny_model, tmp_path / "a.png", out, *options) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 1
    # Of a manifest, beside a video; and never over its own source.
    write_video(tmp_path / "c.mp4", np.repeat(colours[None], 5, axis=0), 8.0)
    rows = [{"id": name, "source_path": name, "instruction": "make it red"} for name in ("b.jpg", "c.mp4")]
    assert run(tiny_model, manifest(tmp_path, rows), out, "--steps", 1, instruction=None) == 0
    assert {line["output"] for line in results(out).values()} == {"a.png", "b.jpg.png", "c.mp4.mp4"}
    capsys.readouterr()
    assert run(tiny_model, tmp_path / "a.png", tmp_path) == 2
    assert "A result would replace the input" in capsys.readouterr().err
