"""How torch manages a GPU's memory, set up before it is touched."""

import os
import sys

# torch reads the first of them; older versions, and builds for AMD, the others.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def set_up_allocator() -> None:
    """Let segments grow, so that batches of different sizes do not leave gaps; what the user has set stays.

    To be called before torch first asks for a GPU's memory: it reads the variable then.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in VARIABLES):  # torch warns elsewhere
        os.environ[VARIABLES[0]] = "expandable_segments:True"
