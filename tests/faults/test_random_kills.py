"""kill -9 of anything at any time: no run is unloadable, no byte wrong, no more steps lost than the bound says."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import pytest

from tests.testbed.toy.campaign import Campaign
from tests.testbed.toy.runs import nursery

CI_S = 30.0
CHAOS_KILLS, CHAOS_S = 320, 3600.0


def campaign(tmp_path: Path, kills: int, budget_s: float) -> Campaign:
    """Run one; its seed is drawn, or given in $FGLAUNCH_SEED to repeat what was drawn (not when it struck)."""
    seed = int(os.environ.get("FGLAUNCH_SEED") or secrets.randbelow(2**32))
    print(f"FGLAUNCH_SEED={seed}", flush=True)
    with nursery(tmp_path / "memory") as processes:
        campaign = Campaign(processes, tmp_path, seed)
        campaign.go_on(kills, time.monotonic() + budget_s)
        campaign.finish()
    print(campaign.figures.line(), flush=True)
    return campaign


@pytest.mark.train
def test_random_kills_lose_nothing_but_the_last_steps(tmp_path: Path) -> None:
    figures = campaign(tmp_path, CHAOS_KILLS, CI_S).figures
    assert figures.restarts > 0
    assert figures.commits > 0


@pytest.mark.chaos
@pytest.mark.timeout(CHAOS_S + 300)
def test_three_hundred_random_kills(tmp_path: Path) -> None:
    figures = campaign(tmp_path, CHAOS_KILLS, CHAOS_S).figures
    assert figures.kills.total() >= 300
