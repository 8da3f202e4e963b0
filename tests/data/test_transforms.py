"""Transforms of training samples: what they make, what it depends on, and what they must not do."""

import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from icve.data.buckets import Draw, draw_generator
from icve.data.cache.latents import LatentCache, ShardWriter
from icve.data.edit_region import region_from_mask
from icve.data.encoding import Encoders, encode_pairs, find_work
from icve.data.manifest import read_manifest, write_manifest
from icve.data.masks import save_mask
from icve.data.paired_edits import PairedEditsDataModule
from icve.data.transforms import KeepSource, LatentTransform, SourceNoise, SourceTransform, given_texts, transformed
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from tests.data.test_pairs import at_batch, same
from tests.texts import assert_same_text

BUCKETS = [[48, 64, 9], [64, 48, 9]]
KEEP = ["keep it", "change nothing"]


class TwiceAsFast(SourceTransform):
    """Every other frame of the source; a batch's sources must be of one length, so its samples decide together."""

    per_step = True

    def __call__(self, sample, rng):
        if rng.random() < 0.5:
            return sample
        source = sample["source"][:, ::2]
        return {**sample, "source": source, "instruction": f"[slow it down] {sample['instruction']}"}


class Polite(LatentTransform):
    """Changes the instruction into one that no cache has."""

    def __call__(self, sample, rng):
        return {**sample, "instruction": f"please {sample['instruction']}"}

    on_latents = __call__


def data_module(folder, transforms=(), start_batch=0, share=None, passes=1, **options):
    options = {"buckets": BUCKETS, "batch_size": 4, "seed": 5, "worker_timeout": 60, **options}
    module = PairedEditsDataModule(str(folder / "manifest.parquet"), transforms=list(transforms), **options)
    module.trainer = at_batch(start_batch, share, passes)
    return module


def take(module, count):
    return list(islice(module.train_dataloader(), count))


def pixels(seed=0, mask=True):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 9, 16, 24)
    sample = {
        name: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for name in ("source", "target")
    }
    sample |= {"instruction": "make it blue", "id": f"row{seed}"}
    if mask:
        sample["mask"] = torch.rand(1, *shape[1:], generator=generator) > 0.95
    return sample


def encoded(sample):
    """What a latent cache holds of a sample in pixels."""
    latents = {role: DCTCodec().encode(sample[role][None].float() / 127.5 - 1)[0] for role in ("source", "target")}
    if "mask" in sample:
        latents["region"] = region_from_mask(sample["mask"][None], latents["target"].shape[1:])[0]
    text = HashedTextEncoder(12, 10).encode([sample["instruction"]])
    return {"instruction": sample["instruction"], "id": sample["id"], "text": text, **latents}


def own_generator(number=0):
    return np.random.default_rng(number)


# ---- the shipped ones ------------------------------------------------------------------------------------------------


def test_kept_samples_are_their_source_with_nothing_edited():
    sample = pixels()
    kept = KeepSource(1.0, KEEP)(sample, own_generator())
    assert kept.keys() == sample.keys()
    assert torch.equal(kept["source"], sample["source"])
    assert torch.equal(kept["target"], sample["source"])
    assert kept["instruction"] in KEEP
    assert not kept["mask"].any()
    assert KeepSource(0.0)(sample, own_generator()) == sample
    assert {KeepSource(1.0, KEEP)(sample, own_generator(n))["instruction"] for n in range(20)} == set(KEEP)


def test_the_share_is_kept():
    keep, sample = KeepSource(0.2), pixels(mask=False)
    kept = sum(transformed(sample, [keep], 0, Draw(0, n, 3))["target"] is sample["source"] for n in range(1000))
    assert 160 < kept < 240


@pytest.mark.parametrize("transforms", [[KeepSource(0.5, KEEP)], [KeepSource(0.4, KEEP), Polite(), KeepSource(0.4)]])
@pytest.mark.parametrize("mask", [False, True])
def test_latents_are_changed_as_if_the_changed_pixels_were_encoded(transforms, mask):
    changed = 0
    for number in range(12):
        sample, draw = pixels(number, mask), Draw(number, 7, number)
        there = encoded(transformed(sample, transforms, 3, draw))
        here = transformed(encoded(sample), transforms, 3, draw)
        assert here.keys() == there.keys()
        assert (here["instruction"], here["id"]) == (there["instruction"], there["id"])
        for name in ("source", "target", *(("region",) if mask else ())):
            assert torch.equal(here[name], there[name])
        if here["instruction"] == sample["instruction"]:
            assert_same_text(here["text"], there["text"])
        else:
            assert here["text"] is None
            changed += 1
    assert changed > 2


def test_noise_is_on_the_source_alone():
    sample = {**pixels(), "source": torch.full((3, 9, 64, 64), 128, dtype=torch.uint8)}
    before = sample["source"].clone()
    deviations = []
    for number in range(40):
        noisy = SourceNoise(1.0, 30.0)(sample, own_generator(number))
        assert noisy["source"].dtype == torch.uint8
        assert all(noisy[name] is sample[name] for name in ("target", "mask", "instruction", "id"))
        difference = noisy["source"].float() - 128
        assert abs(float(difference.mean())) < 0.5
        deviations.append(float(difference.std()))
    assert torch.equal(sample["source"], before)
    assert 0 <= min(deviations) < 6
    assert 24 < max(deviations) < 31
    assert 12 < np.mean(deviations) < 18
    assert SourceNoise(0.0)(sample, own_generator()) is sample


def test_noise_stays_in_the_range_of_pixels():
    for level in (0, 255):
        source = torch.full((3, 5, 64, 64), level, dtype=torch.uint8)
        noisy = SourceNoise(1.0, 30.0)({"source": source}, own_generator())["source"]
        assert (noisy.float() - level).abs().max() < 160  # nothing has wrapped around
        assert 0.4 < float((noisy == level).float().mean()) < 0.65


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepSource(1.1),
        lambda: KeepSource(-0.1),
        lambda: KeepSource(0.1, []),
        lambda: KeepSource(0.1, ["keep it", " "]),
        lambda: SourceNoise(2.0),
        lambda: SourceNoise(0.5, 0.0),
        lambda: SourceNoise(0.5, float("nan")),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"(share|instructions|deviation) of (KeepSource|SourceNoise) must be"):
        make()


# ---- what is random --------------------------------------------------------------------------------------------------


def test_random_numbers_belong_to_seed_step_position_and_transform():
    def drawn(seed=0, step=1, position=2, purpose="transform 0", per_step=False, row=9):
        return float(draw_generator(seed, Draw(row, step, position), purpose, per_step).random())

    assert drawn() == drawn() == drawn(row=4)
    others = [drawn(seed=1), drawn(step=2), drawn(position=1), drawn(purpose="transform 1"), drawn(per_step=True)]
    assert len({drawn(), *others}) == 6
    assert drawn(per_step=True) == drawn(per_step=True, position=5) != drawn(per_step=True, step=2)
    assert drawn(step=12, position=3) != drawn(step=1, position=23)


TRANSFORMS = [KeepSource(0.3, KEEP), SourceNoise(0.7, 40.0)]


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_workers_restarts_and_memory_change_nothing(pairs_folder):
    straight = take(data_module(pairs_folder, TRANSFORMS), 10)
    assert not same(straight, take(data_module(pairs_folder), 10))
    assert same(take(data_module(pairs_folder, TRANSFORMS, num_workers=2), 10), straight)
    assert same(take(data_module(pairs_folder, TRANSFORMS, num_workers=1, start_batch=6), 4), straight[6:])
    assert same(take(data_module(pairs_folder, TRANSFORMS, start_batch=6), 4), straight[6:])
    assert same(take(data_module(pairs_folder, TRANSFORMS, cache_in_memory=True), 10), straight)


def test_ranks_and_micro_batches_change_nothing(pairs_folder):
    whole = take(data_module(pairs_folder, TRANSFORMS), 4)
    for groups, passes in ((2, 1), (1, 2), (2, 2)):
        split = {"batch_size": 4 // passes, "passes": passes}
        ranks = [
            take(
                data_module(pairs_folder, TRANSFORMS, share={"num_replicas": groups, "rank": rank}, **split), 4 * passes
            )
            for rank in range(groups)
        ]
        for step, batch in enumerate(whole):
            parts = [rank[step * passes + micro] for micro in range(passes) for rank in ranks]
            assert [name for part in parts for name in part["id"]] == batch["id"]
            assert [words for part in parts for words in part["instruction"]] == batch["instruction"]
            for role in ("source", "target"):
                assert torch.equal(torch.cat([part[role] for part in parts]), batch[role])


def test_every_draw_of_a_row_is_another_one(pairs_folder):
    module = data_module(pairs_folder, [SourceNoise(1.0, 40.0)], cache_in_memory=True)
    seen = {}
    for batch in take(module, 20):
        for name, source, target in zip(batch["id"], batch["source"], batch["target"], strict=True):
            seen.setdefault(name, []).append((source, target))
    for draws in seen.values():
        assert len(draws) > 3
        sources, targets = zip(*draws, strict=True)
        assert not any(torch.equal(sources[0], source) for source in sources[1:])
        assert all(torch.equal(targets[0], target) for target in targets)


def test_what_replaces_an_unreadable_row_is_transformed_in_its_place(pairs_folder, tmp_path):
    shutil.copytree(pairs_folder, tmp_path / "broken")
    (tmp_path / "broken" / "sources" / "2.mp4").unlink()
    plain = take(data_module(tmp_path / "broken"), 10)
    noisy = take(data_module(tmp_path / "broken", [SourceNoise(0.5)]), 10)
    assert [batch["id"] for batch in noisy] == [batch["id"] for batch in plain]
    for step, (batch, clean) in enumerate(zip(noisy, plain, strict=True)):
        for position, source in enumerate(clean["source"]):
            rng = draw_generator(5, Draw(0, step, position), "transform 0")
            assert torch.equal(batch["source"][position], SourceNoise(0.5)({"source": source}, rng)["source"])


def test_validation_sees_the_samples_as_they_are(pairs_folder):
    manifest = str(pairs_folder / "manifest.parquet")
    transforms = [KeepSource(1.0, KEEP), SourceNoise(1.0)]
    batches = list(data_module(pairs_folder, transforms, val_manifest=manifest).val_dataloader())
    assert same(batches, list(data_module(pairs_folder, val_manifest=manifest).val_dataloader()))


def test_a_batch_that_decides_together_can_have_sources_of_another_length(pairs_folder):
    batches = take(data_module(pairs_folder, [TwiceAsFast()]), 12)
    plain = take(data_module(pairs_folder), 12)
    assert {batch["source"].shape[2] for batch in batches} == {5, 9}
    for batch, clean in zip(batches, plain, strict=True):
        assert torch.equal(batch["target"], clean["target"])
        fast = batch["source"].shape[2] == 5
        assert all(words.startswith("[slow it down] make it") == fast for words in batch["instruction"])
        assert torch.equal(batch["source"], clean["source"][:, :, :: 2 if fast else 1])


# ---- from a latent cache ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache_once(pairs_folder, tmp_path_factory):
    """Masked pairs, and a cache of them and of the texts of KEEP."""
    folder = tmp_path_factory.mktemp("masked") / "pairs"
    shutil.copytree(pairs_folder, folder)
    rows = list(read_manifest(folder / "manifest.parquet"))
    for number, row in enumerate(rows[:6]):
        mask = np.zeros((12, row["height"], row["width"]), dtype=bool)
        mask[:, 4 * number : 4 * number + 9, 10:20] = True
        row["mask_path"] = f"{row['id']}.npz"
        save_mask(folder / row["mask_path"], mask)
    write_manifest(rows, folder / "manifest.parquet")
    encoders = Encoders(DCTCodec(), HashedTextEncoder(12, 10), "cpu")
    cache = LatentCache.create(
        folder.parent / "cache", encoders.codec, encoders.text_encoder, "float32", lambda: encoders.text("")
    )
    cache.add_texts(KEEP, encoders.text)
    data = data_module(folder)
    with ShardWriter(cache, (1, 1)) as writer:
        encode_pairs(find_work(data, cache, (1, 1)), data, cache, encoders, writer)
    return folder, cache.folder


@pytest.mark.parametrize("memory", [False, True])
def test_batches_of_a_cache_are_the_encoded_batches_of_pixels(cache_once, memory):
    folder, cache = cache_once
    transforms, codec, encoder = [KeepSource(0.5, KEEP)], DCTCodec(), HashedTextEncoder(12, 10)
    ours = take(data_module(folder, transforms, latents=str(cache), cache_in_memory=memory), 10)
    kept = 0
    for batch, of_pixels in zip(ours, take(data_module(folder, transforms), 10), strict=True):
        assert (batch["id"], batch["instruction"]) == (of_pixels["id"], of_pixels["instruction"])
        for role in ("source", "target"):
            assert torch.equal(batch[role], codec.encode(of_pixels[role].float() / 127.5 - 1))
        assert torch.equal(batch["region"], region_from_mask(of_pixels["mask"], batch["target"].shape[2:]))
        for text, words in zip(batch["text"], batch["instruction"], strict=True):
            assert_same_text(text, encoder.encode([words]))
            kept += words in KEEP
    assert 10 < kept < 30


def test_a_text_that_is_not_in_the_cache_is_no_text_of_another(cache_once):
    folder, cache = cache_once
    transforms = [KeepSource(0.5, KEEP), Polite()]
    for batch in take(data_module(folder, transforms, latents=str(cache)), 3):
        assert all(words.startswith("please ") for words in batch["instruction"])
        assert batch["text"] == [None] * 4


def test_a_transform_cannot_pass_off_another_text():
    class Liar(LatentTransform):
        def __call__(self, sample, rng):
            assert "text" not in sample
            return {**sample, "instruction": "something else"}

        def on_latents(self, sample, rng):
            return {**self(sample, rng), "text": HashedTextEncoder(12, 10).encode(["make it blue"])}

    with pytest.raises(ValueError, match=r"Liar returns .*'text'"):
        transformed(encoded(pixels()), [Liar()], 0, Draw(0, 0, 0))


def test_transforms_of_pixels_are_refused_with_a_cache(cache_once):
    folder, cache = cache_once
    module = data_module(folder, [KeepSource(0.1, KEEP), SourceNoise()], latents=str(cache))
    with pytest.raises(ValueError, match="SourceNoise changes pixels, and a latent cache has none: take it out"):
        module.setup("fit")
    module = data_module(folder, [SourceNoise()], latents=str(cache), val_manifest=module.manifest)
    module.setup("validate")  # is not transformed
    with pytest.raises(ValueError, match="SourceNoise changes pixels"):
        transformed(encoded(pixels()), [SourceNoise()], 0, Draw(0, 0, 0))


def test_texts_that_the_cache_lacks_are_named(cache_once):
    folder, cache = cache_once
    module = data_module(folder, [KeepSource(0.1, [*KEEP, "do nothing"])], latents=str(cache))
    with pytest.raises(
        ValueError, match=r"lacks the instruction 'do nothing' of a transform; add it with: icve encode"
    ):
        module.setup("fit")


def test_a_damaged_text_is_named(cache_once, tmp_path):
    shutil.copytree(cache_once[1], tmp_path / "cache")
    for file in (tmp_path / "cache").glob("text-*.safetensors"):
        file.write_bytes(b"{")
    with pytest.raises(ValueError, match=r"text-.*safetensors of the latent cache is missing or damaged"):
        LatentCache(tmp_path / "cache").texts(KEEP)


def test_texts_are_encoded_once_and_each_transform_is_asked():
    transforms = [KeepSource(0.1, KEEP), SourceNoise(), Polite(), KeepSource(0.1, ["change nothing", "do nothing"])]
    assert given_texts(transforms) == [*KEEP, "do nothing"]


# ---- what transforms must not do -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda sample: {**sample, "source": sample["source"].fill_(0)}, "writes into tensors"),
        (lambda sample: {**sample, "target": sample["target"][:, :5]}, r"a target of shape \(3, 5, 16, 24\), not"),
        (lambda sample: sample.update(target=sample["target"][:, :5]) or sample, "a target of shape"),
        (lambda sample: {**sample, "source": sample["source"].float()}, "a source of torch.float32, not torch.uint8"),
        (lambda sample: {name: sample[name] for name in ("source", "target", "instruction", "id")}, "returns .* place"),
    ],
)
def test_results_that_cannot_be_trained_on_are_refused(change, told):
    class Bad(SourceTransform):
        def __call__(self, sample, rng):
            return change(sample)

    with pytest.raises(ValueError, match=f"^Bad .*{told}"):
        transformed(pixels(), [Bad()], 0, Draw(0, 0, 0))


def test_a_sample_that_is_changed_as_a_dict_stays_as_it_was_in_memory(pairs_folder):
    class InPlace(SourceTransform):
        def __call__(self, sample, rng):
            sample["instruction"] += "!"
            sample["source"] = 255 - sample["source"]
            return sample

    batches = take(data_module(pairs_folder, [InPlace()], cache_in_memory=True), 12)
    assert all(words.count("!") == 1 for batch in batches for words in batch["instruction"])
    assert same(batches, take(data_module(pairs_folder, [InPlace()]), 12))
