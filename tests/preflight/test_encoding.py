"""What encoding costs in a plan: the counts of the codec that runs, divided as the processes of a group divide it."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from icve.data.buckets import Bucket
from icve.models.counting import Counts, Measured
from icve.models.hunyuan_video.codec import HunyuanVideoCodec
from icve.models.hunyuan_video.text import HunyuanTextEncoder
from icve.models.recompute import MODES
from icve.preflight.encoding import Encoding, encoding_of
from icve.preflight.fits import Machine, Run, Sized, best, evaluate
from icve.preflight.layouts import STRATEGIES, Layout, Model
from icve.preflight.plan_report import Result, tables
from icve.training.distributed.activation_checkpointing import Checkpointing
from tests.tiny_hunyuan import save_tiny_hunyuan

WEIGHTLESS = {
    "codec": {"class_path": "icve.models.weightless.dct.DCTCodec"},
    "text_encoder": {"class_path": "icve.models.weightless.hashed.HashedTextEncoder"},
}
TILES = {"tile_size": 32, "tile_stride": 24, "tile_frames": 8, "tile_frame_stride": 4}


@torch.no_grad()
def test_what_is_counted_is_what_runs(tmp_path):
    folders = {name: str(folder) for name, folder in save_tiny_hunyuan(tmp_path).items()}
    texts = {"llama": folders["llama"], "clip": folders["clip"]}
    frozen = {
        "codec": {
            "class_path": "icve.models.hunyuan_video.codec.HunyuanVideoCodec",
            "init_args": {"pretrained": folders["vae"], **TILES},
        },
        "text_encoder": {
            "class_path": "icve.models.hunyuan_video.text.HunyuanTextEncoder",
            "init_args": texts,
        },
    }
    encoding = encoding_of(frozen, Bucket(40, 56, 21), 7)
    codec = HunyuanVideoCodec(folders["vae"], **TILES)
    codec.load()
    with FlopCounterMode(display=False) as flops:
        codec.encode(torch.zeros(1, 3, 21, 40, 56))
    # torch does not count the kernel of attention that a CPU takes, which is little.
    assert sum(count for _, count in encoding.tiles) == pytest.approx(flops.get_total_flops(), rel=0.01)
    assert [pixels for pixels, _ in encoding.tiles] == [
        tile[0, 0].numel() for tile in codec.tiles(torch.zeros(1, 3, 21, 40, 56))
    ]
    encoder = HunyuanTextEncoder(**texts)
    with FlopCounterMode(display=False) as flops:
        condition = encoder.encode(["six b."])
    assert condition.mask.sum() == 7
    # Nor are the products of attention, of which a short text has few, in the plan.
    assert encoding.text == flops.get_total_flops()


def test_parts_without_weights_cost_nothing():
    assert encoding_of(WEIGHTLESS, Bucket(32, 32, 5), 7) == Encoding()
    assert Encoding().flops(3, 2) == 0


def test_a_group_divides_tiles_and_texts():
    encoding = Encoding(tiles=((10, 100), (5, 50)), text=7)
    assert encoding.flops(1) == 300 + 7
    assert encoding.flops(1, 2) == 150 + 7
    assert encoding.flops(1, 8) == 100 + 7  # no tile is divided
    assert encoding.flops(4, 2) == 600 + 14


def run(encoding):
    model = Model(1000, 100, 8.0, 0, 8, 3, 24, 2, True, False)
    of_blocks = {"layers": dict.fromkeys(MODES, Counts(1.0, 2.0, 0.0, 4.0, 8.0))}  # one block, which is all there is
    sized = Sized(Bucket(32, 32, 5), 20, 1.0, Measured({"layers": 1}, of_blocks, of_blocks), encoding)
    return Run("test", model, [sized], 8, 10, Checkpointing())


def test_encoding_is_part_of_the_step_and_of_the_choice():
    machine = Machine(4, 4, 1e9, 0, 1.0)
    encoding = Encoding(tiles=((1, 6),) * 4, text=1)
    for ranks, expected in ((1, 2 * (48 + 1)), (2, 4 * (24 + 1)), (4, 8 * (12 + 1))):
        option = evaluate(run(encoding), machine, Layout(4, "zero1", ranks, Checkpointing()), samples=1)
        assert option.encoding == [expected]
        assert option.seconds == [expected + 8 * 3 / 4]
        assert option.step_seconds == option.seconds[0]
    # Whole clips, of which a sample has two, keep no more than two processes busy.
    whole = run(Encoding(tiles=((1, 24),)))
    found = [evaluate(whole, machine, Layout(4, "zero1", ranks, Checkpointing()), samples=1) for ranks in (1, 2, 4)]
    assert [option.encoding for option in found] == [[96], [96], [192]]
    assert best(found).layout.sequence_parallel == 1


def test_a_plan_says_how_encoding_ahead_is_counted():
    machine, encoding = Machine(4, 4, 1e9, 0, 1.0), Encoding(tiles=((1, 6),) * 4, text=1)
    said = "Encoding is counted in full, though batches are encoded ahead"
    for encoded, ahead, expected in ((encoding, True, True), (encoding, False, False), (Encoding(), True, False)):
        result = Result(replace(run(encoded), encode_ahead=ahead), machine, STRATEGIES)
        assert (said in tables(result)) == expected
