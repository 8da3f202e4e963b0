import torch

from icve.models.known_texts import KnownTexts, pad_texts
from icve.models.weightless.hashed import HashedTextEncoder

TEXTS = ["make the red circle blue", "", "remove it"]


class Counting(HashedTextEncoder):
    asked = ()

    def encode(self, texts):
        self.asked = (*self.asked, *texts)
        return super().encode(texts)


def embedding(encoder, text):
    embeddings, _, pooled = encoder.encode([text])
    return embeddings[0], pooled[0]


def test_padding_gives_what_the_encoder_gives_for_a_batch():
    encoder = HashedTextEncoder(12, 10)
    for ours, theirs in zip(pad_texts([embedding(encoder, t) for t in TEXTS]), encoder.encode(TEXTS), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_only_unknown_texts_are_encoded():
    encoder = Counting(12, 10)
    known = KnownTexts({text: embedding(HashedTextEncoder(12, 10), text) for text in TEXTS[:2]}, encoder)
    for texts in (TEXTS, TEXTS[::-1], TEXTS[:2]):
        for ours, theirs in zip(known.encode(texts), HashedTextEncoder(12, 10).encode(texts), strict=True):
            assert torch.equal(ours, theirs)
    assert encoder.asked == ("remove it",)
    assert not list(known.modules())[1:]
    alone = KnownTexts({}, encoder)
    assert torch.equal(alone.encode(TEXTS)[0], HashedTextEncoder(12, 10).encode(TEXTS)[0])
