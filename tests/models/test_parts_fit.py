"""Parts of different releases are refused in a sentence, where a run or an editor is put together."""

import pytest
import torch

from icve.data.text_condition import TextCondition
from icve.editing.pipeline import EditPipeline
from icve.models.parts_fit import check_parts
from icve.models.wan.codec import WanCodec
from icve.models.wan.text import WanTextEncoder
from icve.models.wan.tiny import TRANSFORMER, write_tiny, write_tiny_22
from icve.models.wan.transformer import WanInContextTransformer3DModel
from icve.training.module import InContextEditingModule
from icve.training.objectives.in_context import InContext


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    write_tiny(folder / "2.1")
    write_tiny_22(folder / "2.2")
    return folder


def parts(folders, codec, **changes):
    transformer = WanInContextTransformer3DModel(**TRANSFORMER | changes)
    return transformer, WanCodec(str(folders / codec / "vae")), WanTextEncoder(str(folders / "2.1" / "text_encoder"))


LARGE = {"in_channels": 48, "out_channels": 48}
CHANNELS = "makes latents of 16 channels and the transformer takes 48: take both from the weights of one release"
WIDTH = "makes embeddings of width 32 and the transformer takes 4096: take both from the weights of one release"


def test_parts_of_one_release_fit(folders):
    check_parts(*parts(folders, "2.1"))
    check_parts(*parts(folders, "2.2", **LARGE))


@pytest.mark.parametrize(("changes", "told"), [(LARGE, CHANNELS), ({"text_dim": 4096}, WIDTH)], ids=["codec", "text"])
def test_parts_of_different_releases_make_no_run_and_no_editor(folders, changes, told):
    transformer, codec, text_encoder = parts(folders, "2.1", **changes)
    frozen = {"codec": codec, "text_encoder": text_encoder}
    with pytest.raises(ValueError, match=told):
        InContextEditingModule(transformer, frozen, InContext(), "stage", torch.optim.AdamW)
    with pytest.raises(ValueError, match=told):
        EditPipeline(codec, text_encoder, None, transformer)


def test_of_parts_that_say_nothing_nothing_is_known(folders):
    class Silent(torch.nn.Module):
        def encode(self, texts: list[str]) -> TextCondition: ...

    check_parts(Silent(), Silent(), Silent())
    check_parts(parts(folders, "2.1")[0], Silent(), Silent())
    check_parts(None, *parts(folders, "2.1")[1:])
