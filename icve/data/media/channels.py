"""Which of AAC's channel layouts holds a track's channels, and how they are brought into it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

# Layouts of FFmpeg's AAC encoder, with its names of the speakers in the order of the channels; small ones first.
LAYOUTS = {
    "mono": ("FC",),
    "stereo": ("FL", "FR"),
    "3.0": ("FL", "FR", "FC"),
    "4.0": ("FL", "FR", "FC", "BC"),
    "5.0": ("FL", "FR", "FC", "BL", "BR"),
    "5.1": ("FL", "FR", "FC", "LFE", "BL", "BR"),
    "7.1": ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
# What so many channels without names usually are.
_UNNAMED = {len(LAYOUTS[layout]): LAYOUTS[layout] for layout in ("mono", "stereo", "3.0", "5.0", "5.1", "7.1")}
_UNNAMED |= {4: ("FL", "FR", "BL", "BR"), 7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR")}
# Speakers that AAC's layouts lack are played by their neighbours, at equal power.
_NEIGHBOURS = {
    **dict.fromkeys(("FLC", "TFL", "WL", "BFL"), ("FL",)),
    **dict.fromkeys(("FRC", "TFR", "WR", "BFR"), ("FR",)),
    **dict.fromkeys(("TC", "TFC", "BFC"), ("FC",)),
    **dict.fromkeys(("TSL", "SSL"), ("SL",)),
    **dict.fromkeys(("TSR", "SSR"), ("SR",)),
    **dict.fromkeys(("BC", "TBC"), ("BL", "BR")),
    "TBL": ("BL",),
    "TBR": ("BR",),
    "LFE2": ("LFE",),
}
_RENAMED = {"DL": "FL", "DR": "FR", "BIL": "FL", "BIR": "FR"}  # stereo of other kinds
_ORDER = (*LAYOUTS["5.1"], "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR", "DL", "DR")
_HALF_POWER = 0.5**0.5


def channel_mix(names: Sequence[str], layouts: Collection[str] = LAYOUTS) -> tuple[str, np.ndarray, str]:
    """The smallest layout that holds channels of these FFmpeg names.

    Args:
        names: of the channels.
        layouts: keys of :data:`LAYOUTS` to choose from, "mono" and "7.1" among them.

    Returns:
        its name in :data:`LAYOUTS`, the matrix (channels of the layout, channels given) float32 that brings samples
        into it, and how a listener's sound differs from the source's in words; "" where every channel is kept.

    Raises:
        ValueError: the channels have no known places. The message says so.
    """
    names, differences = list(names), []
    known = {*LAYOUTS["7.1"], *_NEIGHBOURS, *_RENAMED}
    if not any(name in known or name.startswith("AMBI") for name in names):
        if len(names) not in _UNNAMED:
            raise ValueError(f"its {len(names)} channels have no known places.")
        names = list(_UNNAMED[len(names)])
        if len(names) > 2:
            differences.append(f"has channels without names, which are taken for {' '.join(names)}")
    renamed = _RENAMED
    if not {"BL", "BR"} & set(names):
        renamed = renamed | {"SL": "BL", "SR": "BR"}  # one pair of surround speakers: 5.1 has it at the side or behind
    places: list[tuple[str, ...]] = [(renamed.get(name, name),) for name in names]
    if len(names) == 1 and names[0] in known:
        places = [LAYOUTS["mono"]]
    layout = _smallest(places, layouts)
    mixed: list[str] = []
    if layout is None:
        kept = set(LAYOUTS["7.1"])
        mixed = [name for name, (place,) in zip(names, places, strict=True) if place in _NEIGHBOURS]
        dropped = [name for name, (place,) in zip(names, places, strict=True) if place not in {*kept, *_NEIGHBOURS}]
        places = [place if place[0] in kept else _NEIGHBOURS.get(place[0], ()) for place in places]
        layout = _smallest(places, layouts)
        if layout is None:
            raise ValueError(f"its channels ({' '.join(names)}) have no known places.")
        differences += (
            [f"becomes {layout}, with these channels mixed into their neighbours: {' '.join(mixed)}"] if mixed else []
        )
        differences += [f"is without the channels {' '.join(dropped)}, which have no known places"] if dropped else []
    matrix = np.zeros((len(LAYOUTS[layout]), len(names)), np.float32)
    for column, (name, targets) in enumerate(zip(names, places, strict=True)):
        for target in targets:
            matrix[LAYOUTS[layout].index(target), column] = _HALF_POWER if name in mixed else 1.0
    return layout, matrix, f"{', and '.join(differences)}." if differences else ""


def is_custom(names: Sequence[str]) -> bool:
    """Whether channels of these names may not stand in FFmpeg's order."""
    places = [_ORDER.index(name) if name in _ORDER else -1 for name in names]
    return set(names) != {"NONE"} and (-1 in places or places != sorted(places))


def _smallest(places: Sequence[tuple[str, ...]], layouts: Collection[str]) -> str | None:
    wanted = {name for names in places for name in names}
    holding = (layout for layout, held in LAYOUTS.items() if layout in layouts and wanted <= set(held))
    return next(holding, None) if wanted else None
