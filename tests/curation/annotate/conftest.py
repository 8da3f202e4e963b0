"""A real endpoint on this machine, for the tests of what reaches one."""

from collections.abc import Iterator

import pytest

from icve.curation.annotate.endpoint import EndpointModel
from tests.curation.annotate.http_endpoint import Endpoint

QUICK = {"first_wait": 0.01, "longest_wait": 1.0, "attempts": 4, "timeout": 5.0}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def model(endpoint, tmp_path):
    """Makes a connected model with its cache in the test's folder."""

    def make(**parameters) -> EndpointModel:
        parameters = {"base_url": endpoint.url, "model": "tiny", "cache": str(tmp_path / "cache")} | QUICK | parameters
        made = EndpointModel(**parameters)
        made.setup()
        return made

    return make
