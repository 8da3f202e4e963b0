"""The tool that compares transformers with diffusers': both see the same, and its table is whole. No timings."""

import argparse
import importlib.util

import pytest
import torch


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("bench_transformer", repository / "tools" / "bench_transformer.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


SIZES = [
    "--heads",
    "2",
    "--head-dim",
    "32",
    "--grid",
    "2",
    "2",
    "3",
    "--text",
    "8",
    "--valid",
    "3",
    "8",
    "--rounds",
    "1",
]
LAYERS = {"hunyuan_video": ["1", "1"], "wan": ["1"]}


@pytest.mark.parametrize("family", LAYERS)
def test_a_row_for_every_length_of_text_and_pass(tool, family, monkeypatch, capsys):
    words = ["bench", "--family", family, "--dtype", "float32", *SIZES, "--layers", *LAYERS[family]]
    monkeypatch.setattr("sys.argv", words)
    tool.main()
    head, _, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert head.startswith(f"{family}: 24 visual + 8 text tokens, width 64, ")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1:3] for row in cells] == [
        [f"{valid} of 8", kind] for valid in (3, 8) for kind in ("forward", "forward+backward")
    ]
    assert all(0 < float(row[6]) <= 1 for row in cells[1::2])  # bytes kept for backward, of diffusers'


@torch.no_grad()
def test_wans_two_models_compute_the_same_of_the_same_tokens(tool):
    args = argparse.Namespace(device="cpu", heads=2, head_dim=12, layers=[1], grid=[1, 2, 3], text=8, batch=1)
    runs = tool.build_wan(args, torch.float32, 3)
    ours, peer = runs["icve"], runs["diffusers"]
    video = peer.inputs["hidden_states"]
    halves = torch.cat([ours.inputs["source_hidden_states"], ours.inputs["hidden_states"]], 2)
    assert torch.equal(halves, video)
    found = ours.model(video, **{k: v for k, v in ours.inputs.items() if not k.endswith("hidden_states") or "enc" in k})
    torch.testing.assert_close(found, peer.model(**peer.inputs).sample, atol=2e-5, rtol=1e-4)


def test_as_many_layers_as_the_family_has_kinds(tool, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "--family", "wan", "--layers", "1", "2"])
    with pytest.raises(SystemExit):
        tool.main()
    assert "--layers takes 1 of wan" in capsys.readouterr().err
