"""Edits with a mask of the region to change, and with a reference picture."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from icve.cli import edit
from icve.data.edit_region import region_from_mask
from icve.data.latent_grid import LatentGrid
from icve.data.media.video import read_frames, write_video
from icve.editing.conditions import fitted_mask, regions_of
from icve.editing.pipeline import EditPipeline
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from tests.tiny import tiny_editor


def conditioned_editor() -> EditPipeline:
    """The tiny editor, which takes masks and references."""
    editor = tiny_editor()
    transformer = HunyuanVideoInContextTransformer3DModel(**{**editor.transformer.config, "masks": True})
    weights = {"mask_embedder.proj.weight": torch.randn_like(transformer.mask_embedder.proj.weight) * 20}
    transformer.load_state_dict(editor.transformer.state_dict() | weights)
    made = EditPipeline(
        *(editor.codec, editor.text_encoder, editor.scheduler, transformer.eval()),
        defaults=editor.config.defaults,
        references=True,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def editor():
    return conditioned_editor()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    conditioned_editor().save_pretrained(folder)
    return folder


@pytest.fixture
def left(tmp_path):
    """A picture whose left half is white."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    return tmp_path / "left.png"


def picture(path, grey=90):
    Image.new("RGB", (20, 40), (grey, 200, 30)).save(path)
    return path


def edited(editor, **given):
    video = torch.randint(0, 256, (1, 3, 5, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return editor(video, "make it red", generator=torch.Generator().manual_seed(1), **given).video


def test_masks_and_references_matter_and_their_forms_agree(editor, left, tmp_path):
    plain = edited(editor)
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    masked = edited(editor, mask=mask)
    assert not torch.equal(masked, plain)
    assert torch.equal(edited(editor, mask=left), masked)
    assert torch.equal(edited(editor, mask=[np.stack([mask] * 5)]), masked)
    assert torch.equal(edited(editor, mask=255 * mask.astype(np.uint8)), masked)
    assert torch.equal(edited(editor, mask=np.ones((32, 32), bool)), plain)  # the whole picture is as none
    file = picture(tmp_path / "look.png")
    referenced = edited(editor, reference=file)
    assert not torch.equal(referenced, plain)
    assert torch.equal(edited(editor, reference=np.asarray(Image.open(file))), referenced)
    assert not torch.equal(edited(editor, reference=picture(tmp_path / "other.png", 250)), referenced)


def test_they_come_with_the_folder(model):
    loaded = EditPipeline.from_pretrained(model)
    assert loaded.takes_masks
    assert loaded.takes_references
    assert "references" not in json.loads(tiny_editor().to_json_string())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": np.zeros((32, 32), bool)}, "The mask marks nothing: make the region to change white"),
        ({"mask": np.ones((16, 32), bool)}, "The mask is 32x16 and its video 32x32: give a mask of the video's size"),
        ({"mask": np.ones((3, 32, 32), bool)}, r"A mask must be bool or uint8, \(H, W\) or \(5, H, W\)"),
        ({"mask": [np.ones((32, 32), bool)] * 2}, "Got 1 videos and 2 masks"),
        ({"mask": "none.png"}, r"none\.png: there is no such picture"),
        ({"reference": np.ones((4, 4), np.uint8)}, r"A reference must be uint8 \(H, W, 3\) or a path"),
        ({"reference": "none.png"}, r"none\.png: there is no such picture"),
    ],
)
def test_what_cannot_be_used_is_named(editor, given, message):
    with pytest.raises(ValueError, match=message):
        edited(editor, **given)


def test_an_editor_without_them_refuses_them():
    with pytest.raises(ValueError, match="takes no mask: its transformer was trained without"):
        edited(tiny_editor(), mask=np.eye(32, dtype=bool))
    with pytest.raises(ValueError, match="takes no reference: it was trained without"):
        edited(tiny_editor(), reference=np.zeros((4, 4, 3), np.uint8))


def test_where_nothing_is_marked_the_source_stays(editor):
    source = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 2, 4, 4, dtype=torch.bool)
    mask[1, ..., 0] = True
    latents = editor.edit_latents(source, ["make it red"] * 2, mask=mask)
    assert torch.equal(latents[0], source[0])
    assert not torch.equal(latents[1], source[1])


def test_every_window_has_its_own_part_of_a_moving_mask(tmp_path):
    frames = np.zeros((12, 32, 32, 3), np.uint8)
    for n in range(12):
        frames[n, :, 16 * (n >= 6) : 16 * (n >= 6) + 16] = 255
    write_video(tmp_path / "mask.mp4", frames, fps=8, crf=0)
    grid = LatentGrid(8, 4, (1, 2, 2))
    first, last = regions_of(tmp_path / "mask.mp4", [(0, 5), (8, 4)], 5, (64, 64), (32, 32), grid)
    assert first.shape == (1, 2, 4, 4)
    assert first[..., :2].all()
    assert not first[..., 2:].any()
    assert last[..., 2:].all()
    assert not last[..., :2].any()
    whole = fitted_mask(frames[:, ..., 0] > 0, (32, 32), (32, 32))
    assert torch.equal(first, region_from_mask(whole[None, None, :5], (2, 4, 4))[0])
    black = np.zeros((3, 32, 32, 3), np.uint8)
    write_video(tmp_path / "black.mp4", black, fps=8)
    with pytest.raises(ValueError, match=r"black\.mp4 marks nothing"):
        regions_of(tmp_path / "black.mp4", [(0, 3)], 5, (32, 32), (32, 32), grid)


def run(model, source, output, *options) -> int:
    words = ["--model", model, "--input", source, "--output", output, "--steps", 1, *options]
    return edit.main([str(word) for word in words])


def results(folder):
    return {row["id"]: row for row in map(json.loads, (folder / "results.jsonl").read_text().splitlines())}


def test_the_command_takes_both(model, make_clip, left, tmp_path, capsys):
    clip, out = make_clip("clip.mp4", frames=12), tmp_path / "out"
    words = ["--instruction", "make it red"]
    assert run(model, clip, out, *words) == 0
    plain = read_frames(out / "clip.mp4")
    given = [*words, "--mask", left, "--reference", picture(tmp_path / "look.png")]
    assert run(model, clip, out, *given) == 0  # another key: edited again
    assert results(out)["clip"]["mask"] == str(left)
    assert not np.array_equal(read_frames(out / "clip.mp4"), plain)
    assert run(model, clip, out, *given) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == 1
    picture(left, 255)  # other pixels: edited again, and in vain
    assert run(model, clip, out, *given) == 3
    assert "give a mask of the video's size or proportions" in results(out)["clip"]["error"]


def test_the_columns_of_a_manifest(model, tiny_model, make_clip, left, tmp_path, monkeypatch, capsys):
    seen, edit_latents = [], EditPipeline.edit_latents

    def spy(self, source, words, **given):
        seen.append({name for name in ("mask", "reference") if given.get(name) is not None})
        return edit_latents(self, source, words, **given)

    monkeypatch.setattr(EditPipeline, "edit_latents", spy)
    make_clip("a.mp4")
    picture(tmp_path / "look.png")
    rows = [
        {"id": "none", "source_path": "a.mp4"},
        {"id": "mask", "source_path": "a.mp4", "mask_path": "left.png"},
        {"id": "look", "source_path": "a.mp4", "reference_path": "look.png"},
        {"id": "lost", "source_path": "a.mp4", "reference_path": "lost.png"},
    ]
    lines = "".join(json.dumps(row | {"instruction": "make it red"}) + "\n" for row in rows)
    (tmp_path / "edits.jsonl").write_text(lines)
    out = tmp_path / "out"
    assert run(model, tmp_path / "edits.jsonl", out) == 3
    found = results(out)
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(("none", "mask", "look"), "ok") | {
        "lost": "failed"
    }
    assert "there is no such picture" in found["lost"]["error"]
    assert seen == [{"mask"}, {"reference"}]  # without a mask is as with one of everything; references are apart
    assert not np.array_equal(read_frames(out / "mask.mp4"), read_frames(out / "none.mp4"))
    # One that was trained without does without, and says so.
    capsys.readouterr()
    assert run(tiny_model, tmp_path / "edits.jsonl", tmp_path / "without") == 0
    said = capsys.readouterr().err
    assert "takes no mask and no reference: the masks of 1 items and the references of 2 items are ignored" in said


@pytest.mark.parametrize("name", ["mask", "reference"])
def test_an_option_that_the_editor_cannot_follow_is_refused(name, tiny_model, make_clip, left, tmp_path, capsys):
    clip = make_clip("clip.mp4")
    words = ["--instruction", "make it red"]
    assert run(tiny_model, clip, tmp_path / "out", *words, f"--{name}", left) == 2
    assert f"was trained without {name}s: leave --{name} out" in capsys.readouterr().err
    assert run(tiny_model, clip, tmp_path / "out", *words, f"--{name}", tmp_path / "no.png") == 2
    assert "no.png does not exist" in capsys.readouterr().err
