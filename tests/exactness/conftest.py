from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.rank_pool import RankPool


@pytest.fixture(scope="package")
def ranks() -> Iterator[RankPool]:
    with RankPool(4) as pool:
        yield pool
