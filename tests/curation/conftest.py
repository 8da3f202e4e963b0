"""The real videos, decoded and measured once for all tests that decide something about them."""

import pytest


@pytest.fixture(scope="session")
def measured(shared_data, tmp_path_factory):
    """(rows, rejected, workspace) after `Probe` and `Measure` of the long, the odd and the bad videos."""
    from icve.curation.measure import Measure
    from icve.curation.probe import Probe
    from icve.curation.stage import Workspace
    from tests.curation.running import run_stages

    root = shared_data / "videos"
    files = [path for folder in ("long", "filter", "bad") for path in sorted((root / folder).glob("*.mp4"))]
    inputs = [{"key": path.stem, "video": path.relative_to(root).as_posix()} for path in files]
    work = Workspace(root, tmp_path_factory.mktemp("measured"), root)
    return *run_stages([Probe(min_side=128, min_seconds=1.5), Measure()], inputs, work), work
