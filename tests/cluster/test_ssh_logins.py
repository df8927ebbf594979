"""Logging in to many hosts, through an `ssh` that is only played: a script that a test writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import Unreachable, _ssh_link
from cluster._ssh_client import Target
from cluster._ssh_link import Link
from cluster._turns import Turns

WAIT_S = 240.0
REFUSED = "kex_exchange_identification: Connection closed by remote host\\nConnection closed by UNKNOWN port 65535"


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder: `ssh` is a script there that notes in `log` that it `begins`, and then is the host, `up`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    play(tmp_path, "")
    return tmp_path


def play(folder: Path, meanwhile: str) -> None:
    lines = [f"cd {folder}", "echo begins >> log", meanwhile, "echo up >> log", 'eval "for c; do :; done"', 'eval "$c"']
    (folder / "ssh").write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / "ssh").chmod(0o755)


@pytest.fixture
def links(played: Path) -> Iterator[list[Link]]:
    made = [Link(Target(f"gpu{i}", python=sys.executable)) for i in range(3)]
    yield made
    for link in made:
        link.close()


def said(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


@pytest.mark.parametrize("refusal", [REFUSED, "Connection reset by 10.0.0.1 port 22"])
def test_login_that_is_refused_in_a_crowd_is_tried_again(played: Path, links: list[Link], refusal: str) -> None:
    play(played, f'[ $(wc -l < log) -gt 3 ] || {{ printf "{refusal}\\n" >&2; exit 255; }}')
    assert links[0].ask("hello").value["cores"] >= 1
    assert said(played) == ["begins"] * 4 + ["up"]


def test_login_that_is_refused_again_and_again_is_given_up(
    played: Path, links: list[Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ssh_link, "_BACKOFF_S", (0.01,))
    play(played, f'printf "{REFUSED}\\n" >&2; exit 255')
    with pytest.raises(Unreachable, match="gpu0: Connection closed by UNKNOWN port 65535"):
        links[0].ask("hello")
    assert len(said(played)) >= 5


def test_any_other_complaint_of_the_first_try_is_final(played: Path, links: list[Link]) -> None:
    play(played, "echo 'ssh: connect to host gpu0 port 22: No route to host' >&2; exit 255")
    with pytest.raises(Unreachable, match="gpu0: it does not answer"):
        links[0].ask("hello")


def test_logins_wait_for_their_turn(played: Path, links: list[Link], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ssh_link, "_TURNS", Turns(1, WAIT_S))
    # Each gives another one time to begin, which has to wait until this one is up.
    play(played, "n=$(wc -l < log); for i in 1 2 3 4 5; do [ $(wc -l < log) -eq $n ] && sleep 0.05; done")
    with ThreadPoolExecutor(len(links)) as pool:
        assert len(list(pool.map(lambda link: link.ask("hello"), links))) == len(links)
    assert said(played) == ["begins", "up"] * len(links)


def test_turn_ends_by_itself_and_early_if_it_is_over() -> None:
    turns = Turns(2, WAIT_S)
    with turns.turn(lambda: False) as over, turns.turn(lambda: False):
        over()
        with turns.turn(lambda: False):
            pass  # or this would wait for very long
    short = Turns(1, 0.01)
    with short.turn(lambda: False), short.turn(lambda: False):
        pass


def test_turn_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    turns = Turns(1, WAIT_S)
    with turns.turn(lambda: False), turns.turn(lambda: True):
        pass
