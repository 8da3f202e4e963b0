"""Write tiny random weights of a model family, in the layout its base model is published in, to try configurations.

    python tools/make_tiny_weights.py runs/debug/weights

Their videos are noise.
"""

import argparse
import sys
from pathlib import Path

import torch

from icve.models.families import FAMILIES
from icve.models.family import located
from icve.runtime.atomic import new_folder


def make_tiny_weights(folder: Path, seed: int = 0, family: str | None = None) -> Path:
    """Write them to `folder`, whole or not at all, and return it.

    Args:
        folder: new or empty.
        seed: of the random weights.
        family: name of the family or of its version; None is the first that has tiny weights.

    Raises:
        FileExistsError: `folder` holds something.
        ValueError: there is no such family.
    """
    writers = tiny_families()
    name = family or next(iter(writers))
    if name not in writers:
        raise ValueError(f"There are no tiny weights of '{name}', but of {', '.join(writers)}.")
    with new_folder(folder) as partial:
        torch.manual_seed(seed)
        located(writers[name])(partial)
    return folder


def tiny_families() -> dict[str, str]:
    """Writers of tiny weights by family, and by version where there are several."""
    return {name: writer for family in FAMILIES for name, writer in family.tiny.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    parser.add_argument("--family", help=f"{', '.join(tiny_families())} (default: the first)")
    arguments = parser.parse_args(argv)
    try:
        print(make_tiny_weights(arguments.folder, arguments.seed, arguments.family))
    except (FileExistsError, ValueError) as error:
        print(f"make_tiny_weights: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
