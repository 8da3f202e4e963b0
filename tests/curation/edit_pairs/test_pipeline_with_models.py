"""The stages of pipelines/edit_pairs.yaml one after the other, from clips to batches, with tiny models."""

import json

import pytest

from icve.curation.annotate.model_annotator import ModelAnnotator
from icve.curation.edit_pairs.additions import Additions
from icve.curation.edit_pairs.area import MaskArea
from icve.curation.edit_pairs.balance import Balance
from icve.curation.edit_pairs.caption import MaskedCaption
from icve.curation.edit_pairs.dilate import DilateMask
from icve.curation.edit_pairs.inpaint import Inpaint
from icve.curation.edit_pairs.judge import Judge
from icve.curation.edit_pairs.label import Label
from icve.curation.edit_pairs.merge_styles import MergeStyles
from icve.curation.edit_pairs.silhouette import BlackSilhouette
from icve.curation.edit_pairs.tracked_masks import Masks
from icve.curation.stage import Rejected
from icve.curation.stage_list import load_pipeline
from icve.data.manifest import write_manifest
from icve.data.paired_edits import PairedEditsDataModule
from tests.curation.edit_pairs.scripted import Scripted, clip_row, moving_square, workspace

STAGES = [
    "Probe",
    "Measure",
    "Segments",
    "Quality",
    "Motion",
    "WriteClips",
    "Label",
    "Masks",
    "MaskArea",
    "DilateMask",
    "MaskedCaption",
    "Inpaint",
    "BlackSilhouette",
    "Additions",
    "ModelAnnotator",
    "MergeStyles",
    "Judge",
    "Balance",
]


@pytest.fixture
def folders(monkeypatch, tiny_detector, tiny_segmenter, tiny_vace):
    monkeypatch.setenv("GROUNDING_DINO", str(tiny_detector))
    monkeypatch.setenv("SAM2", str(tiny_segmenter))
    monkeypatch.setenv("VACE", str(tiny_vace))


def test_the_pipeline_file_builds_every_stage(repository, folders):
    pipeline = load_pipeline(repository / "pipelines" / "edit_pairs.yaml")
    assert [stage.name for stage in pipeline.stages] == STAGES
    assert pipeline.root == "output"
    needs = {stage.name: stage.needs for stage in pipeline.stages}
    assert [name for name, need in needs.items() if need == "gpu"] == ["Masks", "Inpaint"]
    assert {stage.name for stage in pipeline.stages if stage.scope == "all"} == {"MergeStyles", "Balance"}


def test_how_an_endpoint_is_reached_does_not_matter_but_what_answers_does(repository, folders, monkeypatch):
    def identities() -> dict[str, str]:
        return {s.name: s.identity for s in load_pipeline(repository / "pipelines" / "edit_pairs.yaml").stages}

    before = identities()
    monkeypatch.setenv("VLM_URL", "http://elsewhere:9000/v1")
    assert identities() == before
    monkeypatch.setenv("VLM_MODEL", "another-model")
    assert {name for name, identity in identities().items() if identity != before[name]} == {
        "Label",
        "MaskedCaption",
        "ModelAnnotator",
        "Judge",
    }


@pytest.mark.parametrize("stage", [Label, MaskedCaption, Judge])
def test_stages_run_where_their_model_runs(stage):
    model = Scripted("")
    assert stage(model).needs == "cpu"
    model.needs = "gpu"
    assert stage(model).needs == "gpu"


def reply(question) -> str:
    if "what an editor could change" in question.prompt:
        items = [("red square", "foreground"), ("grey wall", "background")]
        return json.dumps({"items": [{"phrase": p, "layer": layer, "clear": True} for p, layer in items]})
    if "blacked out" in question.prompt:
        return "A grey wall grows lighter to the right in even light."
    if "Give two marks" in question.prompt:
        return '{"instruction": 5, "quality": 5}'
    return "Remove the red square."


def test_clips_become_pairs_that_train(tmp_path, tiny_detector, tiny_segmenter, tiny_vace):
    work, model = workspace(tmp_path / "run"), Scripted(reply)
    # Frames in a number and of a size that VACE does not take as they are.
    clip = clip_row(work, video=moving_square(frames=6, size=(40, 56))[0])
    stages = [
        Label(model, edits_per_item=2),
        Masks(str(tiny_detector), str(tiny_segmenter), min_score=0.0),
        MaskArea(max_area=1.0),
        DilateMask(),
        MaskedCaption(model),
        Inpaint(str(tiny_vace), steps=1),
        BlackSilhouette(max_share=1.0),  # random weights draw anything
        Additions(),
        ModelAnnotator(model),
        MergeStyles(),
        Judge(model),
        Balance(max_ratio=None),
    ]
    rows = [clip]
    for stage in stages:
        stage.setup()
        outcomes = stage(rows, work)
        assert len(outcomes) == len(rows)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Rejected)], type(stage).__name__
        children = [[outcome] if isinstance(outcome, dict) else outcome for outcome in outcomes]
        rows = [
            {**child, "key": f"{child['key']}-{number}" if len(group) > 1 else child["key"]}
            for group in children
            for number, child in enumerate(group)
        ]
    assert len(rows) == 3  # two edits of the square and one of the wall
    turned = [row for row in rows if row["source_path"].startswith("targets/")]
    assert len(turned) == 1  # half of the removals, drawn by their keys: of the two, the first
    assert [row.get("generated") for row in turned] == ["source"]
    assert [row.get("generated") for row in rows if row not in turned] == [None, None]

    manifest = write_manifest(rows, work.output / "manifest.parquet")
    data = PairedEditsDataModule(str(manifest), buckets=[[32, 48, 5]], batch_size=2)
    data.setup("fit")
    assert len(data.train.pairs) == len(rows)
    batch = next(iter(data.train_dataloader()))
    assert batch["source"].shape == batch["target"].shape == (2, 3, 5, 32, 48)
    assert batch["mask"].shape == (2, 1, 5, 32, 48)
    assert batch["instruction"] == ["Remove the red square."] * 2
