"""Stages one after the other in this process."""

from icve.curation.stage import Rejected
from icve.data.media.video import VideoError


def run_stages(stages, rows, work):
    """Rows that are left after all stages, and what was rejected as (stage, key, reason), as a runner would."""
    rejected = []
    for stage in stages:
        stage.setup()
        left = []
        for row in rows:
            try:
                (outcome,) = stage([row], work)
            except VideoError as error:
                outcome = Rejected("unreadable video", error.reason)
            if isinstance(outcome, Rejected):
                assert outcome.reason
                rejected.append((type(stage).__name__, row["key"], outcome.reason))
            elif isinstance(outcome, list):
                left += [piece | {"key": f"{row['key']}/{number}"} for number, piece in enumerate(outcome)]
            else:
                left.append(outcome)
        rows = left
    return rows, rejected
