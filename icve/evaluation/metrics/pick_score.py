"""PickScore: what people would prefer for a text, by a CLIP model trained on their choices."""

from __future__ import annotations

from icve.evaluation.metrics.clip_score import ClipScore


class PickScore(ClipScore):
    """Mean over frames of exp(logit scale) · cos of frame and text (about 20), ``pick_score``.

    Args: those of :class:`icve.evaluation.metrics.clip_score.ClipScore`; ``model`` is the folder of
        ``yuvalkirstain/PickScore_v1``, ``processor`` that of ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``.
    """

    name = "pick_score"
    unit = "logit"
    published = "yuvalkirstain/PickScore_v1"
    published_processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
