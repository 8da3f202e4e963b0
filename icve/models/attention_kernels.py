"""Which of torch's kernels computes attention: it decides at every call, by device, dtype and shape."""

import torch
from torch.nn.attention import SDPBackend

NAMES = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.OVERRIDEABLE: "the device's own",
    SDPBackend.MATH: "math",
}


def attention_kernel(tokens: int, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that trains on a sequence of this size: flash, cudnn, efficient, math.

    Args:
        tokens: of a packed sequence whose padding is cut off, as `icve.models.attention` does.
        heads, head_dim: of attention on this process.
        device, dtype: of query, key and value.
    """
    query = torch.empty(1, tokens, heads, head_dim, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
    return NAMES.get(SDPBackend(torch._fused_sdp_choice(query, query, query)), "unknown")
