"""What tests of clusters share."""

from __future__ import annotations

import pytest

from cluster import _marks, _ssh_link, ssh

PATIENCE_S = 240.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that a busy machine keeps from answering for a while is not silent, and what dies slowly will die.

    Else a file would read as empty, and a kill leave open what became of its program: as they should, in earnest.
    """
    monkeypatch.setattr(_ssh_link, "_SOON_S", PATIENCE_S)
    monkeypatch.setitem(_ssh_link.Link.ask.__kwdefaults__, "patience_s", PATIENCE_S)
    monkeypatch.setattr(ssh, "_SIGNAL_S", PATIENCE_S)
    monkeypatch.setattr(ssh, "_START_S", PATIENCE_S)
    monkeypatch.setattr(_marks, "END_S", PATIENCE_S)
