import cv2
import numpy as np
import pytest

from icve.curation.similarity import CLIPSimilarityBand, SimilarityBand, clip_distance, dct_hash
from icve.curation.stage import Rejected, Workspace
from icve.data.media.video import write_video


def scenery(seed, size=32):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (6, 6, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


@pytest.fixture
def judge(tmp_path):
    """judge(source, target, **band): what becomes of clips that show these pictures."""

    def make(source, target, **band):
        pictures = [*source, *target]
        histograms = []
        for picture in pictures:
            histogram = cv2.calcHist([picture], [0, 1, 2], None, [4] * 3, [0, 256] * 3).ravel()
            histograms.append(histogram / histogram.sum())
        grey = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures])
        numbers = np.arange(len(pictures)) * 4
        np.savez(tmp_path / "s.npz", sample_frames=numbers, histogram=np.stack(histograms), picture=grey)
        row = {
            "key": "a", "signals": "s.npz", "source_start": 0, "source_frames": 4 * len(source),
            "target_start": 4 * len(source), "target_frames": 4 * len(target),
        }  # fmt: skip
        (outcome,) = SimilarityBand(**band)([row], Workspace(tmp_path, tmp_path, tmp_path))
        return outcome

    return make


def shifted(picture, by):
    return np.roll(picture, by, axis=1)


def test_the_same_pictures_are_near_duplicates_in_any_order(judge):
    pictures = [scenery(0), scenery(1), scenery(2)]
    outcome = judge(pictures, pictures[::-1])
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "clips too alike"
    noisy = [np.clip(p.astype(int) + np.random.default_rng(9).integers(-2, 3, p.shape), 0, 255) for p in pictures]
    assert judge(pictures, [p.astype(np.uint8) for p in noisy], min_change=0.1).reason == "clips too alike"


def test_other_scenes_are_too_different(judge):
    assert judge([scenery(0)], [255 - scenery(1) // 4]).reason == "clips too different"


def test_change_grows_with_what_changes(judge):
    changes = [judge([scenery(0)], [shifted(scenery(0), by)], min_change=0, max_change=2)["change"] for by in (0, 1, 4)]
    assert changes[0] == pytest.approx(0, abs=1e-3)
    assert changes == sorted(changes)
    assert 0.02 < changes[1] < 0.3 < changes[2] + 0.2
    passed = judge([scenery(0)], [shifted(scenery(0), 1)], min_change=0.02, max_change=0.6)
    assert passed["change"] == changes[1]


def test_colour_and_shape_both_count(judge):
    picture = scenery(3)
    recoloured = judge([picture], [picture[..., ::-1].copy()], min_change=0, max_change=2)["change"]
    turned = judge([picture], [picture[::-1].copy()], min_change=0, max_change=2)["change"]
    assert recoloured > 0.1
    assert turned > 0.2


def test_a_clip_shorter_than_the_samples_are_apart_takes_the_nearest(tmp_path):
    pictures = np.stack([cv2.cvtColor(scenery(seed), cv2.COLOR_RGB2GRAY) for seed in range(3)])
    np.savez(tmp_path / "s.npz", sample_frames=np.array([0, 10, 20]), histogram=np.eye(64)[:3], picture=pictures)
    row = {"key": "a", "signals": "s.npz", "source_start": 2, "source_frames": 2, "target_start": 9, "target_frames": 3}
    stage = SimilarityBand(min_change=0, max_change=2)
    distances = stage.distances(row, Workspace(tmp_path, tmp_path, tmp_path))
    expected = (1 + (dct_hash(pictures[0]) != dct_hash(pictures[1])).mean()) / 2
    np.testing.assert_allclose(distances, [[expected]])


def test_the_hash_sees_shape_and_not_brightness():
    picture = cv2.cvtColor(scenery(5), cv2.COLOR_RGB2GRAY)
    dimmed = (picture * 0.6 + 20).astype(np.uint8)
    assert dct_hash(picture).shape == (63,)
    assert (dct_hash(picture) != dct_hash(dimmed)).mean() < 0.05
    others = [
        (dct_hash(picture) != dct_hash(cv2.cvtColor(scenery(seed), cv2.COLOR_RGB2GRAY))).mean() for seed in (6, 7)
    ]
    assert min(others) > 0.2


def test_each_frame_counts_with_its_nearest():
    distances = np.array([[0.0, 0.8], [0.8, 0.2], [0.6, 0.4]])
    assert clip_distance(distances) == pytest.approx(((0 + 0.2 + 0.4) / 3 + (0 + 0.2) / 2) / 2)
    assert clip_distance(distances.T) == pytest.approx(clip_distance(distances))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 99, "max_position_embeddings": 8},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_embeddings_of_the_clips_frames(clip_folder, tmp_path):
    import torch

    scene = [shifted(scenery(0, 64), k) for k in range(6)] + [255 - scenery(1, 64)] * 6
    write_video(tmp_path / "a.mp4", np.stack(scene), 12)
    row = {"key": "a", "source_path": "a.mp4", "target_path": "a.mp4", "source_frames": 6, "target_frames": 6}
    work = Workspace(tmp_path, tmp_path, tmp_path)
    stage = CLIPSimilarityBand(str(clip_folder), min_change=0, max_change=2.1, samples=3, device="cpu")
    assert stage.needs == "gpu"
    stage.setup()
    (same,) = stage([row | {"source_start": 0, "target_start": 0}], work)
    (other,) = stage([row | {"source_start": 0, "target_start": 6}], work)
    assert same["change"] == pytest.approx(0, abs=1e-5)
    assert other["change"] > 1e-3

    from icve.data.media.video import read_frames

    frames = read_frames(tmp_path / "a.mp4", [0, 2, 5])
    inputs = stage.processor(list(frames), return_tensors="pt")
    with torch.inference_mode():
        features = stage.clip.get_image_features(**inputs)
    features = getattr(features, "pooler_output", features)
    expected = torch.nn.functional.normalize(features, dim=-1).numpy()
    np.testing.assert_allclose(stage._embed(row | {"source_start": 0}, "source", work), expected, atol=1e-5)


def test_parameters_are_checked(tmp_path):
    with pytest.raises(ValueError, match="min_change"):
        SimilarityBand(min_change=0.5, max_change=0.1)
    with pytest.raises(ValueError, match="CLIP"):
        CLIPSimilarityBand(str(tmp_path))
