"""Encoding once per group: processes that train on the same samples encode a part each and gather the rest.

All have the pixels, so that only what is encoded, a hundredth of their size, passes between them. The work is shared
out by tiles where the codec has any: a group mostly has more processes than clips.

Each process encodes its part at once, in whichever thread; a call of what it gets then gathers the others' parts, which
the whole group does in the same order and in the thread that sends everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from icve.data.latent_grid import LatentGrid
from icve.data.share import SampleGroup, block_of
from icve.data.text_condition import TextCondition
from icve.models.protocols import Codec, TextEncoder, TiledCodec


def owners(costs: Sequence[float], processes: int) -> list[int]:
    """Which process does each piece of work: the dearest first, always to the one that has least to do.

    Args:
        costs: of the pieces.
        processes: how many.
    """
    loads, chosen = [0.0] * processes, [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        chosen[piece] = loads.index(min(loads))
        loads[chosen[piece]] += costs[piece]
    return chosen


def encode_clips(codec: Codec, videos: Sequence[Tensor], group: SampleGroup) -> Callable[[], list[Tensor]]:
    """Encode this process's part of the videos.

    Args:
        codec: the same on every process.
        videos: uint8 (B, 3, F, H, W) each, the same on every process.
        group: the processes.

    Returns:
        what gives the codec's latents (B, C, T, h, w) float32 of each video; called by the whole group at once. Where
        the codec has tiles they are its `encode`'s bit for bit: its network is given the same at once.
    """
    tiled = cast(TiledCodec, codec) if hasattr(codec, "tiles") else None
    chunks = [video.split(1 if tiled is None else tiled.clips_at_once(video.shape[2])) for video in videos]
    pieces = [[[chunk] if tiled is None else tiled.tiles(chunk) for chunk in video] for video in chunks]
    gather_tiles = _encode_tiles(codec, [tile for video in pieces for chunk in video for tile in chunk], group)

    def gather() -> list[Tensor]:
        encoded = iter(gather_tiles())
        latents = []
        for video, tiles_of in zip(chunks, pieces, strict=True):
            parts = [[next(encoded) for _ in tiles] for tiles in tiles_of]
            if tiled is not None:
                parts = [[tiled.join_tiles(chunk, own)] for chunk, own in zip(video, parts, strict=True)]
            latents.append(torch.cat([own[0] for own in parts]))
        return latents

    return gather


def _encode_tiles(codec: Codec, tiles: Sequence[Tensor], group: SampleGroup) -> Callable[[], list[Tensor]]:
    """Encode this process's tiles (n, 3, f, H, W) uint8; all of them, (n, C, t, h, w) float32, once gathered."""
    chosen = owners([tile.numel() for tile in tiles], group.size)
    encode = getattr(codec, "encode_tiles", codec.encode)
    # Pixels become numbers tile by tile: whole clips would take four times their memory on every process.
    own = [
        encode(tile.float() / 127.5 - 1.0).float()
        for tile, rank in zip(tiles, chosen, strict=True)
        if rank == group.rank
    ]

    grid = LatentGrid(codec.spatial_factor, codec.temporal_factor)
    shapes = [
        (len(tile), codec.latent_channels, *grid.latents(tile.shape[3], tile.shape[4], tile.shape[2])) for tile in tiles
    ]
    of_rank = [[n for n, rank in enumerate(chosen) if rank == r] for r in range(group.size)]
    sizes = [[torch.Size(shapes[n]).numel() for n in numbers] for numbers in of_rank]
    flat = torch.cat([torch.empty(0, device=tiles[0].device), *(part.flatten() for part in own)])

    def gather() -> list[Tensor]:
        gathered = _gather_rows(flat, [sum(counts) for counts in sizes], group.device)
        found: dict[int, Tensor] = {}
        for numbers, counts, numbers_flat in zip(of_rank, sizes, gathered, strict=True):
            parts = zip(numbers, numbers_flat.split(counts), strict=True)
            found |= {n: part.view(shapes[n]) for n, part in parts}
        return [found[n] for n in range(len(tiles))]

    return gather


def encode_texts(encoder: TextEncoder, texts: Sequence[str], group: SampleGroup) -> Callable[[], TextCondition]:
    """Encode this process's part of B texts.

    With fewer texts than processes some encode the same one, in no more time, so that all know how wide it is.

    Returns:
        what gives the encoder's condition of all, to rounding; called by the whole group at once.
    """
    blocks = min(group.size, len(texts))
    parts = [block_of(len(texts), rank % blocks, blocks) for rank in range(group.size)]
    own = encoder.encode([texts[n] for n in parts[group.rank]])

    def gather() -> TextCondition:
        # Only the host knows how long the others' longest is.
        lengths = _gather_rows(torch.tensor([own.embeddings.shape[1]]), [1] * group.size, group.host)
        padded = own.pad(max(int(length) for length in lengths))

        def all_rows(rows: Tensor) -> Tensor:
            through = group.host if rows.device.type == "cpu" else group.device
            return torch.cat(_gather_rows(rows, [len(part) for part in parts], through)[:blocks])

        mask = all_rows(padded.mask.to(torch.uint8)).bool()
        extras = {name: all_rows(extra) for name, extra in padded.extras.items()}
        return TextCondition(all_rows(padded.embeddings), mask, extras)

    return gather


def _gather_rows(rows: Tensor, counts: Sequence[int], group: ProcessGroup) -> list[Tensor]:
    """The rows of every process, of which each knows how many the others have."""
    most = max(counts)
    sent = rows.new_zeros(most, *rows.shape[1:])  # all send equally many: some backends know no other way
    sent[: len(rows)] = rows
    received = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(received, sent, group)
    return [part[:count] for part, count in zip(received, counts, strict=True)]
