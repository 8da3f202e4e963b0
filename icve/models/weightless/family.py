"""A codec and a text encoder without weights: what the demonstration runs on."""

from icve.models.family import Family

FAMILY = Family(
    name="weightless",
    codecs=("icve.models.weightless.dct.DCTCodec",),
    text_encoders=("icve.models.weightless.hashed.HashedTextEncoder",),
)
