"""Every metric against the values of the papers' own code."""

import numpy as np
import pytest
import torch

from icve.evaluation.metrics import mattes
from icve.evaluation.metrics.clip_score import ClipScore
from icve.evaluation.metrics.consistency import BackgroundConsistency, SubjectConsistency
from icve.evaluation.metrics.editboard import ChangeOutside, ClipSuccess, FlowDifference
from icve.evaluation.metrics.five import FivePreservation
from icve.evaluation.metrics.flickering import TemporalFlickering
from icve.evaluation.metrics.frame_features import vision_model
from icve.evaluation.metrics.lpips import Lpips, perceptual_distance
from icve.evaluation.metrics.mattes import MatteErrors
from icve.evaluation.metrics.motion import MotionSmoothness
from icve.evaluation.metrics.pick_score import PickScore
from icve.evaluation.metrics.pictures import CLIP, IMAGENET, Interpolated, Processed
from icve.evaluation.metrics.psnr import Psnr
from icve.evaluation.metrics.regions import mean_within
from icve.evaluation.metrics.ssim import Ssim, ssim_map
from icve.evaluation.metrics.temporal_consistency import FrameConsistency, TemporalConsistency
from icve.evaluation.summary import summarise
from tests.measured import figures, measured

CPU = torch.device("cpu")


def only(found):
    (value,) = found.values()
    return value


def test_pictures_are_prepared_as_the_references_do(goldens):
    frame = goldens["large"][:1]
    clip = goldens.model("clip")
    for name, preparation in (
        ("vbench/dino_transform", Interpolated("bilinear", False, IMAGENET)),
        ("vbench/clip_transform", Interpolated("bicubic", True, CLIP)),
        ("clip/processor", Processed.of(vision_model(clip, "", "cpu").folder)),
    ):
        found = preparation(frame, CPU).numpy()
        goldens.assert_close(name, found if name == "clip/processor" else found[0])


@pytest.mark.parametrize(
    ("name", "metric", "model", "options"),
    [
        ("vbench/subject_consistency", SubjectConsistency, "dino", {}),
        ("vbench/background_consistency", BackgroundConsistency, "clip", {}),
        ("ivebench/subject_consistency", SubjectConsistency, "dino", {"variant": "ivebench"}),
        ("ivebench/background_consistency", BackgroundConsistency, "clip", {"variant": "ivebench"}),
        ("editverse/clip_temporal_consistency", TemporalConsistency, "clip", {}),
        ("editverse/dino_temporal_consistency", TemporalConsistency, "dinov2", {}),
    ],
)
def test_consistency(goldens, name, metric, model, options):
    metric = metric(goldens.model(model), device="cpu", **options)
    rows = []
    for clip in ("edited", "large"):
        figure = only(figures(metric, edited=goldens[clip]))
        goldens.assert_close(f"{name}/{clip}", figure.value)
        rows.append({"edit_type": "", "x": figure.value, "x.weight": figure.weight})
    for pooled in (f"{name}/pooled_over_frames", f"{name}/overall"):
        if pooled in goldens.cases:
            goldens.assert_close(pooled, summarise(rows)["figures"]["x"]["pooled"])


def test_flickering(goldens):
    found = {clip: only(measured(TemporalFlickering(), edited=goldens[clip])) for clip in ("edited", "large")}
    for clip, value in found.items():
        goldens.assert_close(f"vbench/temporal_flickering/{clip}", value)
        goldens.assert_close(f"ivebench/temporal_flickering/{clip}", value)
    goldens.assert_close("vbench/temporal_flickering/mean_over_videos", np.mean(list(found.values())))


class Weighted(torch.nn.Module):
    def forward(self, first, second):
        return 0.3 * first + 0.7 * second


def test_motion_smoothness_with_an_interpolator_from_a_file(goldens, tmp_path):
    torch.jit.save(torch.jit.script(Weighted()), tmp_path / "weighted.pt")
    metric = MotionSmoothness(str(tmp_path / "weighted.pt"), device="cpu")
    for clip in ("edited", "large"):
        found = measured(metric, edited=goldens[clip])["motion_smoothness"]
        goldens.assert_close(f"vbench/motion_smoothness/weighted_interpolator/{clip}", found)


@pytest.mark.parametrize(
    ("prefix", "metric", "model", "options"),
    [
        ("clip/frame_text_x100", ClipScore, "clip", {"unit": "logit"}),
        ("pickscore", PickScore, "pick", {}),
    ],
)
def test_agreement_with_a_text(goldens, prefix, metric, model, options):
    metric = metric(goldens.model(model), device="cpu", **options)
    names = [name for name in goldens.cases if name.startswith(f"{prefix}/")]
    assert len(names) >= 6
    for name in names:
        texts = {"target_caption": goldens.cases[name]["params"]["prompt"]}
        goldens.assert_close(name, only(measured(metric, texts=texts, edited=goldens[name.split("/")[-2]])))


def test_agreement_with_a_text_as_others_scale_and_cut_it(goldens, clips):
    for name, metric, model, options in (
        *((f"torchmetrics/clip_score/{n}", ClipScore, "clip", {}) for n in range(3)),
        ("tgve/clip_score_text", ClipScore, "clip", {"before": "square_480", "unit": "cosine"}),
        ("tgve/pick_score", PickScore, "pick", {"before": "square_480"}),
        ("editboard/clip_similarity", ClipScore, "clip", {"before": "lower_square"}),
    ):
        params = goldens.cases[name]["params"]
        texts = {"target_caption": params.get("prompt") or params["target_prompt"]}
        found = only(measured(metric(goldens.model(model), device="cpu", **options), texts=texts, **clips))
        goldens.assert_close(name, 100 * max(found, 0) if "/clip_score" in name else found)


def test_texts_are_cut_as_clip_reads_them(goldens):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(goldens.model("clip"))
    case = goldens.cases["clip/tokens"]
    assert [tokenizer(prompt).input_ids for prompt in case["params"]["prompts"]] == case["expected"]


def test_what_tgve_and_editboard_make_of_clip(goldens, clips):
    params = goldens.cases["editboard/success_rate"]["params"]
    texts = {"target_caption": params["target_prompt"], "source_caption": params["source_prompt"]}
    clip = goldens.model("clip")
    goldens.assert_close("tgve/clip_score_frame", only(measured(FrameConsistency(clip, device="cpu"), **clips)))
    goldens.assert_close("editboard/success_rate", only(measured(ClipSuccess(clip, "cpu"), texts=texts, **clips)))


def test_change_and_flow_of_editboard(goldens, clips):
    square = {name: array[:, :66, :66] for name, array in clips.items()}
    goldens.assert_close("editboard/semantic_score", only(measured(ChangeOutside(), **square)))
    goldens.assert_close("editboard/ff_beta", only(measured(FlowDifference(), **clips)))


def by_frame(metric, name, clips):
    """A figure of every frame by itself."""
    return [
        measured(metric, **{key: array[n : n + 1] for key, array in clips.items()})[name]
        for n in range(len(clips["edited"]))
    ]


def test_psnr(goldens, clips):
    frame = Psnr(region="frame")
    for name in ("torchmetrics/psnr/per_frame", "skimage/psnr/per_frame"):
        goldens.assert_close(name, by_frame(frame, "psnr_source_frame", clips))
    goldens.assert_close("torchmetrics/psnr/whole_video", measured(frame, **clips)["psnr_source_frame"])
    goldens.assert_close("skimage/psnr_preserved/per_frame", by_frame(Psnr(), "psnr_source_outside", clips))


def test_ssim(goldens, clips):
    found = by_frame(Ssim(region="frame", device="cpu"), "ssim_source_frame", clips)
    goldens.assert_close("skimage/ssim_gaussian/per_frame", found)
    counted = Ssim(region="frame", border="counted", device="cpu")
    goldens.assert_close("torchmetrics/ssim/per_frame", by_frame(counted, "ssim_counted_source_frame", clips))
    pairs = list(zip(clips["edited"], clips["source"], strict=True))
    goldens.assert_close(
        "skimage/ssim_default/per_frame", [float(ssim_map(*p, window="uniform").mean()) for p in pairs]
    )
    maps = [ssim_map(*pair, padding="symmetric") for pair in pairs]
    means = [mean_within(found, ~mask) for found, mask in zip(maps, clips["mask"], strict=True)]
    goldens.assert_close("skimage/ssim_preserved_map/per_frame", means)


@pytest.fixture(scope="session")
def squeeze(goldens):
    files = [
        goldens.model(f"lpips_squeeze/{name}.safetensors") for name in ("squeezenet1_1_features_fp16", "linear_heads")
    ]
    return {"backbone": files[0], "heads": files[1], "device": "cpu"}


def test_lpips(goldens, clips, squeeze):
    metric = Lpips(net="squeeze", region="frame", **squeeze)
    goldens.assert_close("lpips/squeeze/per_frame", by_frame(metric, "lpips_squeeze_source_frame", clips))
    distance = perceptual_distance(squeeze["backbone"], "squeeze", squeeze["heads"], "cpu")
    maps = [distance.map(*pair) for pair in zip(clips["edited"], clips["source"], strict=True)]
    goldens.assert_close("lpips/squeeze/spatial_map", maps[0].numpy())
    means = [mean_within(found, ~mask) for found, mask in zip(maps, clips["mask"], strict=True)]
    goldens.assert_close("lpips/squeeze/preserved_map/per_frame", means)


def test_preservation_as_five_has_it(goldens, clips, squeeze):
    metric = FivePreservation(squeeze["backbone"], squeeze["heads"], device="cpu")
    for name in ("psnr", "mse", "ssim", "lpips"):
        goldens.assert_close(f"five/{name}_unedit_part/per_frame", by_frame(metric, f"five_{name}", clips))


def test_mattes(goldens, clips):
    found = figures(MatteErrors(), **clips)
    for name in ("mad", "mse", "grad", "conn", "dtssd"):
        goldens.assert_close(f"matte/{name}/per_frame", found[f"matte_{name}"].frames)
    goldens.assert_close("matte/grad/kernel", mattes.gradient_kernel())
    true = clips["target_alpha"][0].astype(np.float32) / 255
    goldens.assert_close("matte/grad/constant_prediction", mattes.gradient_error(np.full_like(true, 0.5), true))
    goldens.assert_close("matte/conn/empty", mattes.connectivity_error(np.zeros_like(true), true))


def test_the_table_of_mattes_as_published(goldens, clips):
    mirrored = {name: array[:5, :, ::-1] for name, array in clips.items()}
    rows = []
    for clip in (clips, mirrored):
        found = figures(MatteErrors(), **clip)
        rows.append({"edit_type": ""} | {name: figure.value for name, figure in found.items()})
        rows[-1] |= {f"{name}.frames": figure.frames for name, figure in found.items()}
    means = summarise(rows)["figures"]
    case = goldens.cases["matte/table_as_published"]
    for name, expected in case["expected"].items():
        assert means[name.replace("pha", "matte")]["by_frame"] == pytest.approx(expected, abs=case["tolerance"])
