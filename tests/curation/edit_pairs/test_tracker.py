import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Sam2VideoInferenceSession, Sam2VideoProcessor

from icve.curation.edit_pairs.tracker import MaskTracker, box_prompt, prepare_frames
from tests.curation.edit_pairs.scripted import moving_square
from tests.curation.edit_pairs.tiny_models import SAM_SIZE

CPU = torch.device("cpu")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def tracker(tiny_segmenter):
    return MaskTracker(tiny_segmenter, CPU)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 255, (3, 150, 200, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [64, 256])
def test_frames_are_resized_as_pillow_does_and_normalised(noise, size):
    prepared = prepare_frames(noise, size, CPU, torch.float32)
    assert prepared.shape == (3, 3, size, size)
    levels = (prepared.permute(0, 2, 3, 1).numpy() * STD + MEAN) * 255
    for frame, ours in zip(noise, levels, strict=True):
        reference = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR), np.float32)
        assert np.abs(reference - ours).max() < 1.01  # Pillow rounds between its two passes


def test_frames_are_prepared_as_the_librarys_processor_does(noise):
    pytest.importorskip("torchvision")
    from transformers import Sam2VideoVideoProcessor

    processor = Sam2VideoVideoProcessor(size={"height": 64, "width": 64})
    reference = processor(videos=[torch.from_numpy(noise).permute(0, 3, 1, 2)], return_tensors="pt")
    ours = prepare_frames(noise, 64, CPU, torch.float32)
    torch.testing.assert_close(ours, reference["pixel_values_videos"][0], atol=1.01 / 255 / STD.min(), rtol=0)


def test_boxes_are_prompted_as_the_librarys_processor_does():
    box, shape = np.array([10, 12, 40, 30], np.float32), (48, 80)
    processor = object.__new__(Sam2VideoProcessor)  # its parts need torchvision; coordinates need this alone
    processor.target_size, processor.point_pad_value = SAM_SIZE, -10
    session = Sam2VideoInferenceSession(video_height=shape[0], video_width=shape[1])
    processor.process_new_points_or_boxes_for_video_frame(session, 0, [1], input_boxes=[[box.tolist()]])
    reference, ours = session.point_inputs_per_obj[0][0], box_prompt(box, shape, SAM_SIZE)
    torch.testing.assert_close(ours["point_coords"], reference["point_coords"])
    assert torch.equal(ours["point_labels"], reference["point_labels"])
    assert ours["point_labels"].dtype == reference["point_labels"].dtype


def test_every_frame_gets_a_mask_from_a_box_on_one_of_them(tracker, monkeypatch):
    frames, box = moving_square()[0], np.array([17, 16, 33, 32], np.float32)
    seen = []
    forward = tracker.model.forward
    monkeypatch.setattr(
        tracker.model, "forward", lambda *args, **named: (seen.append(named["frame_idx"]), forward(*args, **named))[1]
    )
    mask = tracker.track(frames, 3, box)
    assert mask.shape == frames.shape[:3]
    assert mask.dtype == bool
    assert seen == [3, 4, 5, 6, 7, 8, 3, 2, 1, 0]
    assert mask.any(axis=(1, 2)).all()


def test_masks_depend_on_the_box_and_on_nothing_else(tracker):
    frames = moving_square()[0]
    left, right = np.array([0, 0, 20, 48], np.float32), np.array([60, 0, 80, 48], np.float32)
    first = tracker.track(frames, 0, left)
    assert (first != tracker.track(frames, 0, right)).any()
    np.testing.assert_array_equal(first, tracker.track(frames, 0, left))


def test_a_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sam2_video"}')
    with pytest.raises(OSError, match="safetensors"):
        MaskTracker(tmp_path, CPU)
