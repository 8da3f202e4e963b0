"""A metric run on frames in memory."""

from icve.evaluation.metrics.metric import FRAMES, ClipInfo, Figure


def measured(metric, chunk=3, texts=None, **frames):
    """Plain figures of a metric, which gets ``chunk`` frames at a time; ``frames`` may hold more than it needs."""
    return {
        name: figure.value if isinstance(figure, Figure) else figure
        for name, figure in figures(metric, chunk, texts, **frames).items()
    }


def figures(metric, chunk=3, texts=None, **frames):
    """Figures of a metric as it gives them."""
    edited = frames["edited"]
    metric.reset(ClipInfo(len(edited), edited.shape[1:3], texts or {}))
    needs = [need for need in metric.needs if need in FRAMES]
    for start in range(0, len(edited), chunk):
        metric.update(**{need: frames[need][start : start + chunk] for need in needs})
    return metric.compute()
