"""Pipelines as YAML: the shipped ones load, and what is wrong is said in one sentence."""

import re
from pathlib import Path

import pytest

from icve.curation.stage_list import load_pipeline

PIPELINES = sorted((Path(__file__).resolve().parents[2] / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_shipped_pipelines_load(path, tmp_path, monkeypatch):
    for name in ("GROUNDING_DINO", "SAM2", "VACE"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model_index.json"):
            (tmp_path / name / file).write_text("{}")
        monkeypatch.setenv(name, str(tmp_path / name))
    pipeline = load_pipeline(path)
    assert len(pipeline.stages) >= 4
    assert len({stage.folder for stage in pipeline.stages}) == len(pipeline.stages)
    rebuilt = [stage.build() for stage in pipeline.stages]
    assert [type(stage).__name__ for stage in rebuilt] == [stage.name for stage in pipeline.stages]
    assert load_pipeline(path.name) == pipeline  # by its name alone, as an installed package has it


def test_shipped_pipelines_exist():
    assert {path.stem for path in PIPELINES} >= {
        "clip_pairs",
        "clip_pairs_demo",
        "clip_pairs_synthetic",
        "edit_pairs",
        "edit_pairs_offline",
    }


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_headers_name_a_command_that_exists(path):
    (command,) = re.findall(r"#\s+(icve curate .*)", path.read_text("utf-8"))
    assert f"pipelines/{path.name}" in command


def test_what_is_null_or_left_out_can_be_overridden(tmp_path):
    file = tmp_path / "pipeline.yaml"
    file.write_text(f"note: null\nstages: [{{class_path: {TOY}Count, init_args: {{note: '${{note}}'}}}}]")
    pipeline = load_pipeline(file, ["note=hello", "shard_size=3"])
    assert pipeline.stages[0].parameters["note"] == "hello"
    assert pipeline.shard_size == 3


def test_overrides_reach_the_stages():
    pipeline = load_pipeline("clip_pairs_demo.yaml", ["frames=9", "fps=12.5", "stages.0.init_args.min_seconds=3"])
    by_name = {stage.name: stage.parameters for stage in pipeline.stages}
    assert by_name["ClipPairs"]["frames"] == 9
    assert by_name["ClipPairs"]["fps"] == 12.5
    assert by_name["Probe"]["min_seconds"] == 3
    plain = load_pipeline("clip_pairs_demo.yaml")
    changed = [a.name for a, b in zip(plain.stages, pipeline.stages, strict=True) if a.identity != b.identity]
    assert "Probe" in changed
    assert "Quality" not in changed


TOY = "tests.curation.toy_stages."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("stages: [", "cannot be read"),
        ("frames: 3", "no list of stages"),
        ("stages: []", "must be a list"),
        ("stages: 3", "must be a list"),
        ("root: elsewhere\nstages: [{class_path: x.Y}]", "must be input or output"),
        ("shard_size: 0\nstages: [{class_path: x.Y}]", "shard_size"),
        (f"stages: [{{class_path: {TOY}Nothing}}]", "Stage 1 of"),
        (f"stages: [{{class_path: {TOY}Count, init_args: {{value: many}}}}]", "Stage 1 of"),
        (f"stages: [{{class_path: {TOY}Count, init_args: {{valeu: 3}}}}]", "valeu"),
        (f"stages: [{{class_path: {TOY}Count, init_args: {{value: '${{nothing}}'}}}}]", "nothing"),
        ("stages: [{class_path: collections.OrderedDict}]", "Stage 1 of"),
        ("stages: [3]", "Stage 1 of"),
        ("!!python/object/apply:os.system [ls]", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, said):
    file = tmp_path / "pipeline.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load_pipeline(file)
    assert "\n" not in str(caught.value)
