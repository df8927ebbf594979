from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.rank_pool import Ranks


@pytest.fixture(scope="package")
def ranks() -> Iterator[Ranks]:
    with Ranks(4) as pool:
        yield pool
