"""Downloads over a loopback server that fails in every way."""

from __future__ import annotations

import hashlib
import random
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain.errors import UserError
from launcher.download import Wanted, download, drop, pause_s, require_space, validator
from tests.launcher.archive_server import Archive, Fault, serve

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
WANTED = Wanted(name="birds.tgz", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


class Call:
    """One download, its progress and pauses noted, nothing slept."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "birds.tgz.part"
        self.progress: list[tuple[int, int]] = []
        self.pauses: list[float] = []

    def __call__(self, *urls: str) -> bytes:
        report = lambda done, total: self.progress.append((done, total))  # noqa: E731
        download(WANTED, urls, self.target, report, self.pauses.append)
        return self.target.read_bytes()


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr("launcher.download._TIMEOUT_S", 240.0)  # how often was asked is counted here
    return Call(tmp_path)


def test_a_good_server_is_asked_once_and_progress_is_told(call: Call) -> None:
    with serve(Archive(CONTENT)) as archive:
        assert call(archive.url) == CONTENT
    assert archive.starts() == [""]
    assert call.pauses == []
    assert call.progress[0] == (0, len(CONTENT))
    assert call.progress[-1] == (len(CONTENT), len(CONTENT))
    assert call.progress == sorted(call.progress)


def test_a_connection_cut_mid_body_goes_on_from_there(call: Call) -> None:
    with serve(Archive(CONTENT, faults=[Fault(cut_after=100_000), Fault(cut_after=100_000)])) as archive:
        assert call(archive.url) == CONTENT
    first, second, third = archive.asked
    assert "Range" not in first
    assert second["If-Range"] == third["If-Range"] == '"one"'
    starts = [int(r["Range"].removeprefix("bytes=").rstrip("-")) for r in (second, third)]
    assert starts == [100_000, 200_000]
    assert call.pauses == [1.0, 1.0]


def test_an_interrupted_process_goes_on_where_it_stopped(call: Call) -> None:
    with serve(Archive(CONTENT, faults=[Fault(cut_after=120_000)])) as archive:
        stop = RuntimeError("killed here")

        def killed(_: float) -> None:
            raise stop

        with pytest.raises(RuntimeError):
            download(WANTED, [archive.url], call.target, lambda *_: None, killed)
        have = call.target.stat().st_size
        assert have == 120_000
        assert call(archive.url) == CONTENT
    assert archive.starts() == ["", f"bytes={have}-"]


def test_a_server_that_ignores_ranges_is_read_anew(call: Call) -> None:
    with serve(Archive(CONTENT, ranges=False, faults=[Fault(cut_after=100_000)])) as archive:
        assert call(archive.url) == CONTENT
    assert len(archive.asked) == 2


def test_a_server_that_ignores_ranges_and_always_breaks_off_is_given_up(call: Call) -> None:
    faults = [Fault(cut_after=100_000)] * 50
    with (
        serve(Archive(CONTENT, ranges=False, faults=faults)) as archive,
        pytest.raises(UserError, match="in a row"),
    ):
        call(archive.url)
    assert len(archive.asked) < 20


def test_progress_refills_the_tries(call: Call) -> None:
    with serve(Archive(CONTENT, faults=[Fault(cut_after=20_000)] * 12)) as archive:
        assert call(archive.url) == CONTENT
    assert len(archive.asked) == 13


def test_a_version_that_changes_under_us_is_not_joined_to_the_old_one(call: Call) -> None:
    faults = [Fault(cut_after=100_000, before=(OTHER, '"old"')), Fault(before=(CONTENT, '"new"'))]
    with serve(Archive(OTHER, faults=faults)) as archive:
        assert call(archive.url) == CONTENT
    assert archive.asked[1]["If-Range"] == '"old"'
    assert len(archive.asked) == 2


def test_without_an_etag_pieces_that_do_not_fit_are_thrown_away_and_read_anew(call: Call) -> None:
    faults = [Fault(cut_after=100_000, before=(OTHER, "")), Fault(before=(CONTENT, ""))]
    with serve(Archive(OTHER, etag="", faults=faults)) as archive:
        assert call(archive.url) == CONTENT
    assert archive.starts()[0] == archive.starts()[2] == ""


def test_wrong_bytes_are_refused_and_not_kept(call: Call) -> None:
    with serve(Archive(OTHER)) as archive, pytest.raises(UserError, match="serves other bytes") as caught:
        call(archive.url)
    assert not call.target.exists()
    assert len(archive.asked) == 1
    assert "--mirror URL" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_page_instead_of_the_file_is_refused_unread_and_keeps_the_part(call: Call) -> None:
    call.target.write_bytes(CONTENT[:1000])
    with (
        serve(Archive(b"<html>log in</html>", ranges=False)) as archive,
        pytest.raises(UserError, match="serves another file"),
    ):
        call(archive.url)
    assert call.target.read_bytes() == CONTENT[:1000]


def test_the_next_url_is_tried_and_gets_only_the_rest(call: Call) -> None:
    faults = [Fault(cut_after=100_000), Fault(status=404)]
    with serve(Archive(CONTENT, faults=faults)) as one, serve(Archive(CONTENT, etag='"two"')) as two:
        assert call(one.url, two.url) == CONTENT
    assert two.starts()[0].startswith("bytes=")
    assert "If-Range" not in two.asked[0]


def test_every_urls_reason_is_given(call: Call) -> None:
    with (
        serve(Archive(CONTENT, faults=[Fault(status=403)])) as one,
        serve(Archive(OTHER)) as two,
        pytest.raises(UserError, match=r"answered 403 Forbidden; .* serves other bytes"),
    ):
        call(one.url, two.url)


def test_a_busy_server_is_given_the_time_it_asks_for(call: Call) -> None:
    busy = [Fault(status=503, headers={"Retry-After": "7"}), Fault(status=429), Fault(status=500)]
    with serve(Archive(CONTENT, faults=busy)) as archive:
        assert call(archive.url) == CONTENT
    assert call.pauses == [7.0, 2.0, 4.0]


def test_a_redirect_keeps_the_range(call: Call) -> None:
    call.target.write_bytes(CONTENT[:50_000])
    with serve(Archive(CONTENT)) as there:
        away = Fault(status=302, headers={"Location": there.url})
        with serve(Archive(OTHER, faults=[away])) as here:
            assert call(here.url) == CONTENT
    assert there.starts() == ["bytes=50000-"]


def test_another_range_than_asked_is_not_appended(call: Call) -> None:
    call.target.write_bytes(CONTENT[:50_000])
    with serve(Archive(CONTENT, faults=[Fault(wrong_range=True)])) as archive:
        assert call(archive.url) == CONTENT
    assert archive.starts() == ["bytes=50000-", ""]


def test_a_body_of_no_declared_length_is_read_to_its_size(call: Call) -> None:
    with serve(Archive(CONTENT, faults=[Fault(chunked=True, cut_after=100_000), Fault(chunked=True)])) as archive:
        assert call(archive.url) == CONTENT


@pytest.mark.parametrize("extra", (b"", b"more"))
def test_a_part_of_full_size_or_more_is_checked(call: Call, extra: bytes) -> None:
    call.target.write_bytes(CONTENT + extra)
    with serve(Archive(CONTENT)) as archive:
        assert call(archive.url) == CONTENT
    assert len(archive.asked) == (1 if extra else 0)


def test_a_damaged_part_of_full_size_is_read_anew(call: Call) -> None:
    call.target.write_bytes(OTHER)
    with serve(Archive(CONTENT)) as archive:
        assert call(archive.url) == CONTENT


def test_a_reset_connection_is_tried_again(call: Call) -> None:
    with serve(Archive(CONTENT, faults=[Fault(reset=True), Fault(reset=True)])) as archive:
        assert call(archive.url) == CONTENT
    assert call.pauses == [1.0, 2.0]


def test_nobody_listening_is_tried_again_then_reported(call: Call) -> None:
    with socket.socket() as held:  # by which nobody else can listen there
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/birds.tgz"
        with pytest.raises(UserError, match="failed 6 times in a row .*refused"):
            call(url)
    assert call.pauses == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize("url", ("gopher://x/birds.tgz", "birds.tgz", "http://", "file:///no/such/birds.tgz"))
def test_a_url_that_cannot_be_opened_is_not_tried_again(call: Call, url: str) -> None:
    with pytest.raises(UserError, match="birds.tgz could not be downloaded"):
        call(url)
    assert call.pauses == []


def test_a_file_url_is_read(call: Call, tmp_path: Path) -> None:
    (tmp_path / "鸟.tgz").write_bytes(CONTENT)
    assert call((tmp_path / "鸟.tgz").as_uri()) == CONTENT


def test_a_disk_that_cannot_be_written_is_the_users_to_mend(call: Call) -> None:
    call.target.mkdir()
    with (
        serve(Archive(CONTENT)) as archive,
        pytest.raises(UserError, match="cannot be written: Is a directory"),
    ):
        call(archive.url)


def test_drop_leaves_nothing(call: Call, tmp_path: Path) -> None:
    with serve(Archive(CONTENT)) as archive:
        call(archive.url)
    drop(call.target)
    assert list(tmp_path.iterdir()) == []


def test_space_is_checked(tmp_path: Path) -> None:
    require_space(tmp_path, 1, "x")
    with pytest.raises(UserError, match=r"birds needs 1000000000\.0 GB there and .* `--into DIR`"):
        require_space(tmp_path, 10**18, "birds")


@given(st.integers(1, 60))
def test_pauses_grow_and_stay_bounded(failures: int) -> None:
    assert 1 <= pause_s(failures) <= pause_s(failures + 1) <= 30


@pytest.mark.parametrize(
    ("etag", "date", "chosen"),
    [('"a"', "Mon", '"a"'), ('W/"a"', "Mon", "Mon"), ("", "Mon", "Mon"), ('W/"a"', "", "")],
)
def test_a_weak_etag_is_not_used(etag: str, date: str, chosen: str) -> None:
    assert validator(etag, date) == chosen
