"""A real endpoint on this machine, for the tests of what reaches one."""

from collections.abc import Iterator

import pytest

from tests.curation.annotate.http_endpoint import Endpoint


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()
