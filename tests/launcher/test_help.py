"""What `--help` says of defaults."""

from __future__ import annotations

import pytest

from launcher.cli import main


def test_help_gives_the_defaults_that_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for words, said in (
        (["snapshots", "prune"], "newest N that verify (default: 1, with --every)"),
        (
            ["rehearse"],
            "where runs are kept (default: a temporary folder; for --costs-from $FGLAUNCH_STORE, or ./store)",
        ),
        (["ps"], "where runs are kept (default: $FGLAUNCH_STORE, or ./store)"),
    ):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert said in " ".join(capsys.readouterr().out.split())
