"""What a group of processes encodes together is what each would encode alone."""

import pytest
import torch
import torch.distributed as dist

from icve.data.share import SampleGroup
from icve.data.shared_loading import Shared, gather_clips
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.hunyuan_video.text import HunyuanTextEncoder
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from icve.training.distributed.shared_encoding import encode_clips, encode_texts, owners
from tests.tiny_hunyuan import save_tiny_clip, save_tiny_llama, save_tiny_vae

PROCESSES = 3
TILES = {"tile_size": 32, "tile_stride": 24, "tile_frames": 8, "tile_frame_stride": 4}
TEXTS = ["make the red circle blue", "", "remove it", "add a green square on the left", "now"]


def test_the_dearest_work_goes_first_and_to_who_has_least():
    assert owners([1, 5, 3, 3], 2) == [0, 0, 1, 1]
    assert owners([2, 2], 4) == [0, 1]
    assert owners([], 2) == []


def pixels(count, *size):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def compare(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    group = SampleGroup(dist.group.WORLD, dist.group.WORLD)
    codecs = [DCTCodec(), HunyuanVideoCodec(f"{folder}/vae", **TILES)]
    for codec in codecs:
        calls = count_pixels(codec)
        for count in (1, 2, 4):
            # A transform may have cut the source.
            videos = [pixels(count, 5, 32, 24), pixels(count, 9, 32, 56)]
            alone = [codec.encode(video.float() / 127.5 - 1) for video in videos]
            whole, calls[:] = sum(calls), []
            together = encode_clips(codec, videos, group)()
            for one, other in zip(alone, together, strict=True):
                assert torch.equal(other, one)
            shares = group.gather(sum(calls))
            assert sum(shares) == whole
            assert max(shares) < 0.85 * whole
            calls.clear()
    for encoder in (HashedTextEncoder(), HunyuanTextEncoder(f"{folder}/llama", f"{folder}/clip")):
        for count in (2, 3, 5):
            alone, together = encoder.encode(TEXTS[:count]), encode_texts(encoder, TEXTS[:count], group)()
            assert torch.equal(together.mask, alone.mask)
            torch.testing.assert_close(together.embeddings, alone.embeddings, atol=1e-6, rtol=0)
            torch.testing.assert_close(together.extras["pooled"], alone.extras["pooled"], atol=1e-6, rtol=0)
    whole = {"target": pixels(5, 2, 4, 4), "mask": pixels(5, 2, 4, 4)[:, :1] > 90}
    parts = ((2, 2), (0, 1), (1, 2))
    first = {2: 0, 0: 2, 1: 3}[rank]
    batch = {name: tensor[first : first + dict(parts)[rank]] for name, tensor in whole.items()}
    batch |= {"id": list("abcde"), "shared": {n: Shared(t.dtype, tuple(t.shape[1:]), parts) for n, t in whole.items()}}
    gathered = gather_clips(batch, group, torch.device("cpu"))
    assert gathered.keys() == {"id", "target", "mask"}
    assert all(torch.equal(gathered[name], tensor) for name, tensor in whole.items())
    dist.destroy_process_group()


def count_pixels(codec) -> list[int]:
    """Pixels that a codec's network is given, as they come."""
    calls = []
    if isinstance(codec, DCTCodec):
        encode = codec.encode
        codec.encode = lambda video: calls.append(video.numel()) or encode(video)
    else:
        codec.load()
        codec.vae.encoder.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].numel()))
    return calls


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_a_group_encodes_what_one_process_encodes(tmp_path):
    """Fewer clips and texts than processes, and numbers of them that the processes do not divide."""
    save_tiny_vae(tmp_path / "vae")
    save_tiny_llama(tmp_path / "llama")
    save_tiny_clip(tmp_path / "clip")
    torch.multiprocessing.spawn(compare, args=(str(tmp_path),), nprocs=PROCESSES)
