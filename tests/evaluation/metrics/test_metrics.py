"""What holds for every metric: chunks do not matter, nothing there is None, and what cannot be measured says why."""

import numpy as np
import pytest
import torch

from icve.evaluation.metrics.five import FivePreservation
from icve.evaluation.metrics.flickering import TemporalFlickering
from icve.evaluation.metrics.layers import CompositeDifference
from icve.evaluation.metrics.lpips import Lpips, PerceptualDistance, perceptual_distance
from icve.evaluation.metrics.mattes import MatteErrors
from icve.evaluation.metrics.motion import MotionSmoothness
from icve.evaluation.metrics.psnr import Psnr
from icve.evaluation.metrics.regions import inner_region
from icve.evaluation.metrics.ssim import Ssim
from icve.evaluation.metrics.success import SyntheticSuccess
from icve.evaluation.suite import load_suite
from tests.measured import figures, measured


@pytest.fixture(scope="module")
def clip():
    """Seven frames of 40 × 48: an edit that changes a square, and some noise elsewhere."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 200, (7, 40, 48, 3), dtype=np.uint8)
    mask = np.zeros((7, 40, 48), bool)
    mask[:, 4:20, 4:20] = True
    edited = np.where(mask[..., None], 255 - source, source + rng.integers(0, 9, source.shape, dtype=np.uint8))
    alpha = rng.integers(0, 255, mask.shape, dtype=np.uint8)
    frames = {"source": source, "edited": edited, "target": 255 - source, "mask": mask, "alpha": alpha}
    frames |= {"source_as_stored": source, "mask_as_stored": mask, "target_alpha": 255 - alpha}
    return frames | {"layer": 255 - source, "composite": edited}


def metrics_of(metric_models):
    suites = [load_suite(name, [f"models={metric_models}", "device=cpu"]).metrics for name in ("icve", "vera")]
    others = [Psnr("target", "inside"), Ssim(region="inside", border="counted"), FivePreservation(every=2)]
    return [*suites[0], *suites[1], *others, MatteErrors(), CompositeDifference()]


def test_figures_do_not_depend_on_how_many_frames_come_at_once(metric_models, clip):
    texts = {"target_caption": "a photo of a red circle"}
    for metric in metrics_of(metric_models):
        whole = measured(metric, 7, texts, **clip)
        for chunk in (1, 3):
            assert measured(metric, chunk, texts, **clip) == pytest.approx(whole, abs=2e-6), type(metric).__name__


def test_what_one_frame_does_not_have_is_missing_and_not_zero(metric_models, clip):
    first = {name: array[:1] for name, array in clip.items()}
    for metric in (
        TemporalFlickering(),
        MotionSmoothness(),
        *load_suite("vbench", [f"models={metric_models}"]).metrics,
    ):
        (figure,) = figures(metric, **first).values()
        assert figure == (None, 0, ())
    everywhere = clip | {"mask": clip["mask"] | True}
    for metric in (Psnr(), Ssim()):
        assert set(measured(metric, **everywhere).values()) == {None}
    assert measured(MatteErrors(), **first)["matte_dtssd"] is None


def test_edited_pixels_have_no_part_in_what_is_preserved(clip, metric_models):
    quiet = clip | {"edited": np.where(clip["mask"][..., None], clip["edited"], clip["source"])}
    assert measured(Psnr(), **quiet)["psnr_source_outside"] == 60
    assert measured(Ssim(), **quiet)["ssim_source_outside"] == pytest.approx(1, abs=1e-6)
    assert measured(Ssim(border="counted"), **quiet)["ssim_counted_source_outside"] < 0.99
    same = measured(Psnr(region="inside"), **quiet)["psnr_source_inside"]
    assert same == pytest.approx(measured(Psnr(region="inside"), **clip)["psnr_source_inside"])
    five = measured(FivePreservation(), **quiet)
    assert five == {"five_psnr": 100, "five_ssim": pytest.approx(1), "five_mse": 0, "five_lpips": None}


def test_a_region_keeps_its_distance(clip):
    inside, outside = (inner_region(clip["mask"], region, 2) for region in ("inside", "outside"))
    assert inside[0].sum() == 12 * 12
    assert not (outside[0, 2:22, 2:22]).any()
    assert outside[0].sum() == 40 * 48 - 20 * 20


def test_five_scales_the_result_to_its_source(clip):
    larger = clip | {"edited": clip["edited"].repeat(2, 1).repeat(2, 2)}
    assert measured(FivePreservation(), **larger)["five_psnr"] > 20


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_networks_of_lpips_are_those_of_torchvision(net):
    """Against torch.nn modules in torchvision's order."""
    torch.manual_seed(0)
    size = {
        "alex": (64, "M", 192, "M", 384, 256, 256),
        "vgg": (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3),
    }
    kernels = iter(((11, 4, 2), (5, 1, 2)) if net == "alex" else ())
    layers, channels, taps = [], 3, []
    for width in size[net]:
        if width == "M":
            taps.append(len(layers))
            layers.append(torch.nn.MaxPool2d(3 if net == "alex" else 2, 2))
            continue
        kernel, stride, padding = next(kernels, (3, 1, 1))
        layers += [torch.nn.Conv2d(channels, width, kernel, stride, padding), torch.nn.ReLU()]
        channels = width
    taps = [*taps[:2], 8, 10, 12] if net == "alex" else [*taps, len(layers)]
    features = torch.nn.Sequential(*layers)
    with torch.inference_mode():
        pictures = torch.rand(2, 3, 64, 64) * 2 - 1
        x, found = (
            (pictures - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
            / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1),
            [],
        )
        for number, layer in enumerate([*features, torch.nn.Identity()]):
            if number in taps:
                unit = torch.nn.functional.normalize(x, dim=1)
                found.append((unit[:1] - unit[1:]).square().sum(1, keepdim=True))
            x = layer(x)
        weights = {f"features.{name}": value for name, value in features.state_dict().items()}
        heads = [
            torch.ones(1, tap.item(), 1, 1)
            for tap in torch.tensor([64, 192, 384, 256, 256] if net == "alex" else [64, 128, 256, 512, 512])
        ]
        ours = PerceptualDistance(weights, heads, net).layers_of(pictures)
    assert len(ours) == len(found) == 5
    for one, other in zip(ours, found, strict=True):
        torch.testing.assert_close(one, other)


def test_wrong_files_of_lpips_are_named(tmp_path, metric_models):
    with pytest.raises(ValueError, match=r"download https://download.pytorch.org/models/vgg16"):
        Lpips(str(tmp_path / "none.pth"), "vgg")
    (tmp_path / "bad.pth").write_text("no")
    with pytest.raises(ValueError, match="is no file of weights"):
        Lpips(str(tmp_path / "bad.pth"))
    with pytest.raises(ValueError, match="does not hold torchvision's weights of squeeze"):
        perceptual_distance(str(metric_models / "alexnet-owt-7be5be79.pth"), "squeeze", None, "cpu")


def test_heads_of_lpips_come_with_torchmetrics(metric_models, goldens):
    distance = perceptual_distance(str(metric_models / "alexnet-owt-7be5be79.pth"), "alex", None, "cpu")
    np.testing.assert_allclose(distance._heads[0].flatten()[:8].numpy(), goldens["lpips_alex_head0"], rtol=1e-6)


def test_layers_that_agree_with_the_composite(clip):
    source, layer, alpha = (clip[name].astype(np.float64) for name in ("source", "layer", "alpha"))
    share = alpha[..., None] / 255
    composite = ((1 - share) * source + share * layer).round().astype(np.uint8)
    assert measured(CompositeDifference(), **clip | {"composite": composite})["composite_difference"] < 0.3
    black = clip | {"composite": composite // 2, "alpha": clip["alpha"] * 0}
    expected = np.abs(source - composite // 2).mean()
    assert measured(CompositeDifference(), **black)["composite_difference"] == pytest.approx(expected)


def test_success_is_being_nearest_to_the_target(clip):
    def success(edited):
        metric, wrong = SyntheticSuccess(), [clip["alpha"][..., None].repeat(3, 3), clip["edited"]]
        metric.reset(None)
        for start in range(0, 7, 3):
            part = slice(start, start + 3)
            metric.update(edited[part], clip["source"][part], clip["target"][part], [other[part] for other in wrong])
        return metric.compute()["success"]

    assert success(clip["target"]) == 1
    assert success(clip["source"]) == success(clip["edited"]) == 0
