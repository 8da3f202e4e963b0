"""What a curation run has done so far, from its folder alone."""

from __future__ import annotations

from pathlib import Path

from icve.curation.annotate.usage import total_usage
from icve.curation.part_files import PartInfo, read_info
from icve.curation.run_folder import INPUTS, StageCount, count_stages, funnel_text, load_description
from icve.curation.stage_list import StageSpec
from icve.data.media.video_folders import left_out_text


def status_text(output: Path) -> str:
    """The funnel of a run, finished or not, and what was paid for answers.

    Raises:
        FileNotFoundError: the folder is no curation run.
    """
    counts, shards = run_counts(output)
    done = "finished" if counts[-1].shards == shards else f"{counts[-1].shards} of {shards} shards finished"
    if counts[-1].shards < shards and (output / "manifest").is_dir():
        done += "; manifest/ and rejected/ are those of an earlier run"
    paid = [f"{model}: {usage}" for model, usage in total_usage(output / "answers").items()]
    left_out = left_out_text(load_description(output).get("left_out", {}))
    return "\n".join([funnel_text(counts, shards), *([left_out] if left_out else []), done, *paid])


def run_counts(output: Path) -> tuple[list[StageCount], int]:
    """Counts of every stage over the parts there are, and the number of shards. Raises FileNotFoundError.

    A part counts if it was made by the stage as the run's last command has it; unlike a run, this does not look
    whether the inputs have changed since.
    """
    description = load_description(output)
    fields = StageSpec.__dataclass_fields__
    stages = [StageSpec(**{name: stage[name] for name in fields}) for stage in description["stages"]]
    survey: list[dict[str, PartInfo]] = []
    for number, folder in enumerate([INPUTS, *(stage.folder for stage in stages)]):
        found = {}
        for shard in description["shards"]:
            info = read_info(output / "stages" / folder / f"{shard}.parquet")
            if info and (number == 0 or (shard in survey[-1] and _same(info, stages[number - 1]))):
                found[shard] = info
        survey.append(found)
    return count_stages(stages, survey), len(description["shards"])


def _same(info: PartInfo, stage: StageSpec) -> bool:
    made_by = (info.stage.get("class_path"), info.stage.get("version"), info.stage.get("parameters"))
    return made_by == (stage.class_path, stage.version, stage.parameters)
