"""Reference pictures from a manifest's rows to batches, from videos and from a latent cache."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from icve.data.cache.latents import LatentCache, ShardWriter
from icve.data.encoding import Encoders, encode_pairs, find_work
from icve.data.manifest import read_manifest, write_manifest
from icve.data.paired_edits import PairedEditsDataModule
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from tests.data.test_pairs import at_batch


@pytest.fixture
def referenced(pairs_folder, tmp_path):
    """The pairs, of which those with even numbers have a picture whose grey is their number."""
    rows = list(read_manifest(pairs_folder / "manifest.parquet"))
    (pairs_folder / "references").mkdir(exist_ok=True)
    for row in rows:
        number = int(row["id"].removeprefix("edit"))
        row["reference_path"] = None
        if number % 2 == 0:
            row["reference_path"] = f"references/{number}.png"
            Image.new("L", (64, 48), 20 * number).save(pairs_folder / row["reference_path"])
    write_manifest(list(rows), tmp_path / "manifest.parquet", root=pairs_folder)
    return tmp_path / "manifest.parquet"


def module(manifest, **options):
    options = {"buckets": [[48, 64, 9]], "batch_size": 8, "references": True, **options}
    data = PairedEditsDataModule(str(manifest), **options)
    data.trainer = at_batch(0)
    return data


def test_batches_say_whose_picture_is_which(referenced):
    batch = next(iter(module(referenced).train_dataloader()))
    numbers = [int(name.removeprefix("edit")) for name in batch["id"]]
    assert batch["referenced"] == [number % 2 == 0 for number in numbers]
    assert batch["reference"].shape == (8, 3, 1, 48, 64)
    assert batch["reference"].dtype == torch.uint8
    for picture, number in zip(batch["reference"], numbers, strict=True):
        assert (picture == (20 * number if number % 2 == 0 else 0)).all()


def test_the_column_is_left_alone_unless_asked_for(referenced):
    batch = next(iter(module(referenced, references=False).train_dataloader()))
    assert "reference" not in batch


def test_a_picture_that_cannot_be_read_drops_its_row(referenced, pairs_folder):
    (pairs_folder / "references" / "0.png").write_text("no picture")
    data = module(referenced)
    found = [name for batch in islice(data.train_dataloader(), 4) for name in batch["id"]]
    assert "edit0" not in found
    assert "it is no PNG" in data.dropped["edit0"]


def test_no_reference_at_all_is_an_error(pairs_folder):
    with pytest.raises(ValueError, match="has a reference_path"):
        module(pairs_folder / "manifest.parquet").setup("fit")


def test_a_cache_holds_what_the_codec_makes_of_the_pictures(referenced, tmp_path):
    encoders = Encoders(DCTCodec(), HashedTextEncoder(text_dim=12, pooled_dim=10), "cpu")
    cache = LatentCache.create(
        tmp_path / "latents", encoders.codec, encoders.text_encoder, "float32", lambda: encoders.text("")
    )
    data = module(referenced)
    with ShardWriter(cache, (1, 1)) as writer:
        encode_pairs(find_work(data, cache, (1, 1)), data, cache, encoders, writer)
    assert find_work(data, cache, (1, 1)).reused == 10
    cached = next(iter(module(referenced, latents=str(cache.folder)).train_dataloader()))
    pixels = next(iter(data.train_dataloader()))
    assert (cached["id"], cached["referenced"]) == (pixels["id"], pixels["referenced"])
    for latents, picture, has in zip(cached["reference"], pixels["reference"], pixels["referenced"], strict=True):
        expected = encoders.video(picture) if has else torch.zeros_like(latents)
        torch.testing.assert_close(latents, expected)
    # A changed picture is another pair.
    Image.fromarray(np.full((48, 64), 200, np.uint8)).save(read_manifest(referenced).root / "references" / "2.png")
    assert len(find_work(data, cache, (1, 1)).jobs) == 1
