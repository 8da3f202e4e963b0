import torch

from icve.data.text_condition import TextCondition
from icve.models.known_texts import KnownTexts
from icve.models.weightless.hashed import HashedTextEncoder
from tests.texts import assert_same_text

TEXTS = ["make the red circle blue", "", "remove it"]


class Counting(HashedTextEncoder):
    asked = ()

    def encode(self, texts):
        self.asked = (*self.asked, *texts)
        return super().encode(texts)


def alone(encoder, text):
    return encoder.encode([text]).alone(0)


def test_stacking_gives_what_the_encoder_gives_for_a_batch():
    encoder = HashedTextEncoder(12, 10)
    together = encoder.encode(TEXTS)
    assert_same_text(TextCondition.stack([alone(encoder, text) for text in TEXTS]), together)
    assert_same_text(TextCondition.stack([together.alone(row) for row in range(3)]), together)
    assert_same_text(together.rows([2, 0, 2]), encoder.encode(["remove it", TEXTS[0], "remove it"]))


def test_named_tensors_give_the_text_again():
    text = alone(HashedTextEncoder(12, 10), TEXTS[0])
    tensors = text.tensors("text")
    assert set(tensors) == {"text", "text.pooled"}
    assert_same_text(TextCondition.from_tensors(tensors, "text"), text)


def test_the_mask_stays_on_the_host():
    text = HashedTextEncoder(12, 10).encode(TEXTS).to("meta", torch.bfloat16)
    assert (text.embeddings.device.type, text.extras["pooled"].dtype) == ("meta", torch.bfloat16)
    assert text.mask.device.type == "cpu"


def test_only_unknown_texts_are_encoded():
    encoder = Counting(12, 10)
    known = KnownTexts({text: alone(HashedTextEncoder(12, 10), text) for text in TEXTS[:2]}, encoder)
    for texts in (TEXTS, TEXTS[::-1], TEXTS[:2]):
        assert_same_text(known.encode(texts), HashedTextEncoder(12, 10).encode(texts))
    assert encoder.asked == ("remove it",)
    assert not list(known.modules())[1:]
    assert_same_text(KnownTexts({}, encoder).encode(TEXTS), HashedTextEncoder(12, 10).encode(TEXTS))
