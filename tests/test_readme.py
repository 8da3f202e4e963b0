"""The documents are true: every command they show exists and parses, every file they name is there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(document's name, text) of every fenced block of a language, which may be a regular expression."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.M | re.S)
    return [(path.name, block) for path in DOCUMENTS for block in pattern.findall(path.read_text(encoding="utf-8"))]


def shell_commands() -> list[tuple[str, str]]:
    """(document's name, command) of everything that the documents show for a shell."""
    shown = ((name, line) for name, block in blocks("(?:bash|sh|shell|console)") for line in commands_of(block))
    return list(dict.fromkeys(shown))


def commands_of(block: str) -> list[str]:
    """Commands of a block: lines without their comments, joined where one is continued or its quotation goes on."""
    commands, begun = [], ""
    for line in block.replace("\\\n", " ").splitlines():
        line = line.split("  #")[0].strip()
        if not begun and (not line or line.startswith("#")):
            continue
        begun += line
        try:
            shlex.split(begun)
        except ValueError:  # the quotation goes on
            begun += "\n"
        else:
            commands.append(begun)
            begun = ""
    assert not begun, f"a quotation has no end: {begun}"
    return commands


def run_icve(arguments: list[str]) -> int:
    from icve.cli.main import main

    try:
        return main(arguments) or 0
    except SystemExit as stop:
        return stop.code or 0


def check_composes(configs: list[str], options: list[str]) -> None:
    """`icve fit` with these composes a configuration."""
    files = [word for file in configs for word in ("-c", file)]
    assert run_icve(["fit", *files, *options, "--print_config"]) == 0


def check_icve(arguments: list[str], folder: Path) -> None:
    """Check the arguments of `icve`, `lightning` or `python -m icve`: configurations are composed, data is written."""
    from icve.cli import convert, inspect_data, plan
    from icve.cli.demo import run as demo

    command, *options = arguments
    if command in ("edit", "eval", "encode", "curate"):
        check_command(shlex.join([f"icve-{command}", *options]), folder)
    elif command == "convert":
        convert.build_parser().parse_args(options)
    elif command in ("fit", "validate"):
        assert run_icve([*arguments, "--print_config"]) == 0
    elif command == "synthesize":
        shortened = list(arguments)
        shortened[shortened.index("--count") + 1] = "2"
        shortened[shortened.index("--output") + 1] = str(folder / "made")
        assert run_icve(shortened) == 0
        assert any((folder / "made").iterdir())
    elif command == "demo":
        demo.build_parser().parse_args(options)
    else:
        assert command in ("plan", "inspect-data"), f"`icve {command}` is shown: teach this test to check it"
        given, of_fit = {"plan": plan, "inspect-data": inspect_data}[command].build_parser().parse_known_args(options)
        assert given.config or not of_fit, f"without a configuration there is no {of_fit}"
        if given.config:
            check_composes(given.config, of_fit)


def check_launcher(program: str, arguments: list[str]) -> None:
    """The launcher's own options parse, and the command after them is left to it whole."""
    from deepspeed.launcher import runner
    from torch.distributed import run

    parse = {"torchrun": run.parse_args, "deepspeed": runner.parse_args}[program]
    given = parse(arguments)
    assert given.module
    assert (given.training_script if program == "torchrun" else given.user_script) == "icve"


def check_parses(program: str, arguments: list[str]) -> None:
    from icve.cli import edit, evaluate

    {"icve-edit": edit, "icve-eval": evaluate}[program].build_parser().parse_args(arguments)  # exits if it does not fit


def check_encode(arguments: list[str]) -> None:
    """Its own options parse, and with the rest the configuration is composed."""
    from icve.cli.encode import build_parser

    given, rest = build_parser().parse_known_args(arguments)
    check_composes(given.config, rest)


def check_curate(arguments: list[str]) -> None:
    """The pipeline loads and the arguments fit."""
    import argparse

    from icve.cli import curate
    from icve.curation.importers import import_command
    from icve.curation.stage_list import load_pipeline

    if arguments[0] in ("status", "preview"):
        assert len(arguments) == 2
    elif arguments[0] == "import":
        import_command.add_arguments(parser := argparse.ArgumentParser())
        parser.parse_args(arguments[1:])
    else:
        given = curate.build_parser().parse_intermixed_args(arguments)
        load_pipeline(given.pipeline, given.overrides)


def check_tool(script: str, arguments: list[str]) -> None:
    """The script is there and names every option; what follows a "--" are options of a command that it runs."""
    assert (ROOT / script).is_file()
    source = (ROOT / script).read_text(encoding="utf-8")
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for word in own:
        if word.startswith("--"):
            assert f'"{word.split("=")[0]}"' in source, f"{script} has no {word}"


def check_command(line: str, folder: Path) -> None:
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True, timeout=60)
    elif program in ("icve", "lightning"):
        check_icve(words[1:], folder)
    elif program == "python" and words[1:3] == ["-m", "icve"]:
        check_icve(words[3:], folder)
    elif program == "icve-encode":
        check_encode(words[1:])
    elif program == "icve-curate":
        check_curate(words[1:])
    elif program in ("icve-edit", "icve-eval"):
        check_parses(program, words[1:])
    elif program == "python" and words[1].endswith(".py"):
        check_tool(words[1], words[2:])
    elif program in ("torchrun", "deepspeed") and "icve" in words:
        check_launcher(program, words[1:])
        check_icve(words[words.index("icve") + 1 :], folder)
    elif program == "sbatch":
        script = words.index("tools/train.sbatch")
        subprocess.run(["bash", "-n", ROOT / words[script]], check=True, timeout=60)
        check_icve(["fit", *words[script + 2 :]], folder)
    elif program == "unshare":  # OPTIONS sh -c 'COMMAND && COMMAND'
        for command in re.split(r"&&|;", words[words.index("-c") + 1]):
            check_command(command, folder)
    elif program == "source":
        assert words == ["source", ".venv/bin/activate"]
    elif program in ("tensorboard", "pre-commit"):
        found = shutil.which(program, path=sysconfig.get_path("scripts"))
        assert found or program == "pre-commit", f"{program} comes with the requirements"  # pre-commit: make lint
    else:
        assert program in ("git", "cd", "pip", "ip", "tc"), f"{line!r} is shown: teach this test to check it"


@pytest.mark.parametrize(("document", "line"), shell_commands(), ids=lambda value: re.sub(r"\W+", "-", value)[:60])
def test_command_exists_and_parses(document, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    check_command(line, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "lightning plan -c configs/sft.yaml --gpus 64 --gpu_memory 80 --gpu 3",
        "icve plan -c configs/sft.yaml --gpus 64",
        "icve plan -c configs/nowhere.yaml --gpus 64 --gpu_memory 80",
        "icve inspect-data data/edits.parquet -c configs/sft.yaml --data.init_args.fpss 16",
        "icve inspect-data data/edits.parquet --bucket 240x384x77",
        "icve demo --train_steps 100",
        "icve trial",
        "icve encode -c configs/demo/sft.yaml --output runs/latents --share 1/2",
        "icve curate pipelines/clip_pairs_demo.yaml --input raw --output out --limits 2",
        "python tools/soak.py --kill 3",
        "python tools/nothing.py",
        "unshare --net sh -c 'ip link set lo up &&\n OMP_NUM_THREADS=1 python tools/bench_checkpointing.py --round 2'",
    ],
)
def test_a_wrong_command_would_be_found(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, SystemExit)):
        check_command(line, tmp_path)


def test_commands_of_a_block():
    block = "# set up\n\nmake demo     # a comment's apostrophe\nicve fit \\\n  -c a.yaml\nsh -c 'one &&\n  two'\n"
    assert commands_of(block) == ["make demo", "icve fit    -c a.yaml", "sh -c 'one &&\ntwo'"]


@pytest.fixture
def demo_folder(tmp_path, monkeypatch) -> Path:
    """A working directory that looks as after the demo: its run folder (of an untrained model) and a video."""
    import numpy as np

    from icve.data.media.video import write_video
    from tests.tiny import tiny_editor

    editor = tiny_editor(guidance_scale=2.0, num_frames=9, height=64, width=64)
    editor.save_pretrained(tmp_path / "runs/demo/sft/checkpoints/last")
    write_video(tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 256, (12, 48, 80, 3), np.uint8), fps=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_shown_runs(demo_folder):
    from icve.data.media.video import probe

    shown = [block for name, block in blocks("python") if name == "README.md"]
    assert shown
    for block in shown:
        exec(compile(block, "README.md", "exec"), {})
    info = probe(demo_folder / "edited.mp4")
    assert (info.frames, info.height, info.width) == (9, 64, 64)


def test_python_of_the_formats_runs(demo_folder):
    import av

    (block,) = [block for name, block in blocks("python") if name == "formats.md"]
    exec(compile(block, "formats.md", "exec"), {})
    with av.open("faded.webm") as file:
        assert file.streams.video[0].metadata["alpha_mode"] == "1"
        assert sum(packet.size > 0 for packet in file.demux(video=0)) == 9


@pytest.mark.slow
def test_editing_commands_shown_run(demo_folder):
    shown = [block for name, block in blocks("bash") if name == "README.md" and "icve edit" in block]
    shown = [block for block in shown if "weights/" not in block]  # these need HunyuanVideo
    assert shown
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    for block in shown:
        subprocess.run(["bash", "-euc", block], check=True, timeout=240, env=environment)
    assert len(list((demo_folder / "runs/edits").glob("*.mp4"))) == 6
    assert (demo_folder / "runs/edits/report.html").is_file()
    assert (demo_folder / "runs/batch/evaluation.html").is_file()


def test_the_two_stages_and_editing_are_shown():
    shown = [line.removeprefix(".venv/bin/") for name, line in shell_commands() if name == "README.md"]
    for command in ("make demo", "lightning fit", "icve edit"):
        assert any(line.startswith(f"{command} ") or line == command for line in shown), command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tools_named_in_sentences_have_their_options(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for code in text.split("`")[1::2]:
        if found := re.search(r"\b(tools/\w+\.py)\b(.*)", code, flags=re.S):
            check_tool(found[1], re.findall(r"--[\w-]+", found[2]))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http://", "https://", "#")):
            assert (document.parent / target.split("#")[0]).exists(), f"{document.name} links to {target}"


def test_paths_named_in_the_readme_exist():
    """Names in backticks that look like files of this repository are files of this repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = "icve|configs|docs|tests|tools"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"README.md names {name}"


def test_manifest_rows_shown_can_be_read(tmp_path):
    from icve.data.manifest import read_manifest

    rows = [block for name, block in blocks("json") if name == "data.md"]
    assert rows
    for number, block in enumerate(rows):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(block, encoding="utf-8")
        (row,) = read_manifest(path, required=("source_path", "target_path", "instruction"))
        assert row["instruction"] == json.loads(block)["instruction"]
