"""The end of a process that worked with others."""

import time

_SECONDS = 0.2


def let_exchanges_end() -> None:
    """Let the threads that exchanged tensors finish with them; to be called last, where processes met or not.

    They need the interpreter to let go of a tensor. A thread of gloo that asks for it when it is already ending aborts
    the process: exit status -6, though everything was done.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        time.sleep(_SECONDS)  # which leaves the interpreter to them
