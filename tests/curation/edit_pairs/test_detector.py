import numpy as np
import pytest
import torch

from icve.curation.edit_pairs.detector import PhraseDetector


@pytest.fixture(scope="module")
def detector(tiny_detector):
    return PhraseDetector(tiny_detector, torch.device("cpu"))


@pytest.fixture(scope="module")
def frame():
    return np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize("phrase", ["red ball", "Green car on the street"])
def test_the_box_is_the_best_one_of_the_librarys_own_post_processing(detector, frame, phrase):
    box, score = detector.find(frame, phrase)
    inputs = detector.processor(images=frame, text=f"{phrase.lower()}.", return_tensors="pt")
    with torch.inference_mode():
        output = detector.model(**inputs)
    (reference,) = detector.processor.post_process_grounded_object_detection(
        output, inputs.input_ids, threshold=0.0, target_sizes=[frame.shape[:2]]
    )
    best = int(reference["scores"].argmax())
    assert score == pytest.approx(float(reference["scores"][best]), abs=1e-6)
    limits = np.array([80, 48, 80, 48])
    np.testing.assert_allclose(box, reference["boxes"][best].numpy().clip(0, limits), atol=1e-3)


def test_boxes_are_in_pixels_of_the_frame(detector, frame):
    box = detector.find(frame, "red ball")[0]
    assert box.dtype == np.float32
    assert (box[:2] <= box[2:]).all()
    assert (box >= 0).all()
    assert (box <= [80, 48, 80, 48]).all()
