"""Public sets of paired edits, as they come, brought into this project's manifest."""

from icve.curation.importers.command import add_arguments, run
from icve.curation.importers.importing import CHECKS, ImportReport, import_set
from icve.curation.importers.sets import SETS

__all__ = ["CHECKS", "SETS", "ImportReport", "add_arguments", "import_set", "run"]
