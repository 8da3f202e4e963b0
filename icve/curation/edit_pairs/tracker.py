"""A box on one frame becomes a mask on every frame: SAM 2 video through transformers.

The library prepares frames with processors that need torchvision; the few lines of it that a boxed thing needs stand
here, in torch alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam2VideoInferenceSession, Sam2VideoModel

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for every SAM 2
_TOP_LEFT, _BOTTOM_RIGHT = 2, 3  # labels of a box's corners among SAM's points


def prepare_frames(frames: np.ndarray, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Frames (F, H, W, 3) uint8 as SAM 2 takes them: (F, 3, size, size), stretched to a square and normalised."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    prepared = []
    for frame in frames:  # one by one: a clip in float32 at 1024 x 1024 would take gigabytes
        pixels = torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).round()  # as uint8 rounds
        prepared.append(((pixels / 255 - mean) / std).to(dtype))
    return torch.cat(prepared)


def box_prompt(box: np.ndarray, shape: tuple[int, int], size: int) -> dict[str, Tensor]:
    """A box (4,) in pixels of a (height, width) picture as the two points that prompt SAM 2 video."""
    height, width = shape
    points = torch.as_tensor(box, dtype=torch.float32).reshape(1, 1, 2, 2) * (size / torch.tensor([width, height]))
    return {"point_coords": points, "point_labels": torch.tensor([[[_TOP_LEFT, _BOTTOM_RIGHT]]], dtype=torch.int32)}


class MaskTracker:
    """Masks of a thing in all frames of a clip.

    Args:
        folder: of a SAM 2 video model, as published for transformers.
        device: where to compute; in bfloat16 on a GPU, as its authors run it, in float32 on the CPU.

    Raises:
        OSError, ValueError: the folder holds no such model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = Sam2VideoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=self.dtype)
        self.model = model.to(device).eval()  # type: ignore[arg-type]  # transformers' decorator loses `self`

    @torch.inference_mode()
    def track(self, frames: np.ndarray, prompt_frame: int, box: np.ndarray) -> np.ndarray:
        """Mask (F, H, W) bool of the thing that a box (4,) in pixels surrounds on frame number `prompt_frame`.

        Args:
            frames: (F, H, W, 3) uint8.
        """
        shape, size = frames.shape[1:3], self.model.config.image_size
        session = Sam2VideoInferenceSession(
            video=prepare_frames(frames, size, self.device, self.dtype),
            video_height=shape[0],
            video_width=shape[1],
            inference_device=self.device,
            inference_state_device=self.device,
            video_storage_device=self.device,
            dtype=self.dtype,
        )
        thing = session.obj_id_to_idx(1)
        session.add_point_inputs(thing, prompt_frame, box_prompt(box, shape, size))
        session.obj_with_new_inputs = [1]
        mask_FHW = np.zeros(frames.shape[:3], dtype=bool)
        for backwards in (False, True):  # from the prompt frame to the end, then to the beginning
            for output in self.model.propagate_in_video_iterator(session, prompt_frame, reverse=backwards):
                logits = F.interpolate(output.pred_masks.float(), shape, mode="bilinear")
                mask_FHW[output.frame_idx] = (logits[0, 0] > 0).cpu().numpy()
        return mask_FHW
