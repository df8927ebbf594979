"""What is particular to the S3 store: bad vendors, wrong settings, lost answers, large objects, forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from fgtrain.errors import KeyExists, KeyMissing, StoreUnavailable, UserError
from fgtrain.stores import Abilities, Store, open_store
from fgtrain.stores.s3 import ATTEMPTS, PARTS_ABOVE
from tests.testbed.runs import wait_for
from tests.testbed.s3 import S3Server, free_port, s3_server
from tests.testbed.s3_proxy import Answer, Lose, Request, Rule, S3Proxy, s3_proxy

REPOSITORY = Path(__file__).parents[2]
OpenHere = Callable[[S3Server], Store]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenHere:
    """Open a store of its own on a server, as a user would: by URL and environment."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/credentials")

    def open_(server: S3Server) -> Store:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        return open_store(f"s3://{server.bucket}/{uuid.uuid4()}")

    return open_


@pytest.fixture
def proxy(seaweedfs: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(seaweedfs.endpoint) as running:
        yield running


@pytest.fixture
def behind_proxy(seaweedfs: S3Server, opened: OpenHere, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    opened(seaweedfs)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    return open_store(f"s3://{seaweedfs.bucket}/{uuid.uuid4()}")


def first(method: str, fate: Lose | Answer, times: int = 1) -> Rule:
    """A rule: this happens to the first requests of this method."""

    def rule(request: Request) -> Lose | Answer | None:
        return fate if request.method == method and request.number < times else None

    return rule


# --- vendors ---


def test_localbucket_keeps_conditions(localbucket: S3Server, opened: OpenHere) -> None:
    assert opened(localbucket).check() == Abilities(conditional_create=True)


def test_vendor_that_ignores_conditions_is_found_out(rclone: S3Server, opened: OpenHere) -> None:
    store = opened(rclone)
    assert store.check() == Abilities(conditional_create=False)
    assert list(store.list()) == []


def test_range_has_no_checksum_of_the_whole(rclone: S3Server, opened: OpenHere) -> None:
    store = opened(rclone)  # which sends one all the same
    store.put("k", b"0123456789")
    assert store.get("k", 3, 6) == b"345"


def test_vendor_that_ignores_ranges_still_gives_them(
    localbucket: S3Server, opened: OpenHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(localbucket)
    with s3_proxy(localbucket.endpoint) as proxy:  # no signature there, which would cover the range
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(f"s3://{localbucket.bucket}/{uuid.uuid4()}")
        store.put("k", b"0123456789")
        proxy.reset(lambda request: Lose.RANGE)
        assert store.get("k", 3, 6) == b"345"
        assert store.get("k", 8) == b"89"
        assert store.get("k", 20, 30) == b""


def test_vendor_that_refuses_conditions_is_found_out(proxy: S3Proxy, behind_proxy: Store) -> None:
    refusal = Answer(501, "NotImplemented")
    proxy.reset(lambda request: refusal if request.conditional else None)
    assert behind_proxy.check() == Abilities(conditional_create=False)


# --- wrong settings: one line that names the URL, the place, the cause and the cure ---


def complaint(store: Store) -> str:
    with pytest.raises(UserError) as error:
        store.check()
    text = str(error.value)
    assert "\n" not in text
    assert store.url in text
    return text


def test_missing_bucket_is_the_users_to_create(localbucket: S3Server, opened: OpenHere) -> None:
    opened(localbucket)
    text = complaint(open_store("s3://no-such-bucket-here/x"))  # SeaweedFS would make it
    assert localbucket.endpoint in text
    assert "create it" in text


def test_wrong_secret_is_named(seaweedfs: S3Server, opened: OpenHere, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(seaweedfs)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" * 8)
    assert "set AWS_SECRET_ACCESS_KEY" in complaint(store)
    with pytest.raises(StoreUnavailable):
        store.put("k", b"")


def test_unknown_access_key_is_named(seaweedfs: S3Server, opened: OpenHere, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(seaweedfs)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYKNOWS00001")
    assert "set AWS_ACCESS_KEY_ID" in complaint(store)


def test_no_credentials_are_told_apart_from_wrong_ones(
    seaweedfs: S3Server, opened: OpenHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(seaweedfs)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "there are no credentials; set AWS_ACCESS_KEY_ID" in complaint(store)


def test_wrong_profile_is_named(seaweedfs: S3Server, opened: OpenHere, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(seaweedfs)
    monkeypatch.setenv("AWS_PROFILE", "labor")
    assert "labor" in complaint(store)
    for use in (store.get, store.head, store.delete):
        with pytest.raises(StoreUnavailable, match="labor"):
            use("k")


def test_refused_connection_is_the_users_in_check_and_passing_elsewhere(
    seaweedfs: S3Server, opened: OpenHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(seaweedfs)
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = open_store("s3://runs/x")
    text = complaint(store)
    assert endpoint in text
    assert "mend AWS_ENDPOINT_URL" in text
    for call in (lambda: store.put("k", b""), lambda: store.get("k"), lambda: list(store.list())):
        with pytest.raises(StoreUnavailable, match="nothing answers"):
            call()


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://bucket//x", "s3://bucket/../x", "s3://b/a\n"])
def test_bad_url_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="write s3://bucket/prefix"):
        open_store(url)


def test_endpoint_without_scheme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    with pytest.raises(UserError, match="must start with http"):
        open_store("s3://bucket")


def test_whole_bucket_is_a_store(seaweedfs: S3Server, opened: OpenHere) -> None:
    opened(seaweedfs)
    bucket, folder = open_store(f"s3://{seaweedfs.bucket}"), uuid.uuid4().hex
    bucket.put(f"{folder}/k", b"x")
    inside = open_store(f"s3://{seaweedfs.bucket}/{folder}/")
    assert [e.key for e in inside.list()] == ["k"]
    assert [e.key for e in bucket.list(folder)] == [f"{folder}/k"]


def test_extra_that_is_missing_is_named_and_not_needed_by_other_stores() -> None:
    program = """
import sys
sys.modules["s3fs"] = None
from fgtrain.stores import open_store
open_store("memory://x").put("k", b"")
assert "botocore" not in sys.modules
try:
    open_store("s3://bucket")
except Exception as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert said.stdout.startswith("UserError store s3://")
    assert said.stdout.endswith("pip install 'fglaunch[s3]'\n")


# --- lost and broken answers ---


@pytest.mark.parametrize("loss", [Lose.REQUEST, Lose.ANSWER])
def test_create_that_is_sent_again_wins_by_its_own_object(proxy: S3Proxy, behind_proxy: Store, loss: Lose) -> None:
    proxy.reset(first("PUT", loss))
    behind_proxy.create("token", b"mine")
    assert proxy.seen["PUT"] == 2
    assert behind_proxy.get("token") == b"mine"


def test_create_that_is_sent_again_loses_to_an_equal_object(proxy: S3Proxy, behind_proxy: Store) -> None:
    behind_proxy.create("token", b"the same bytes")
    proxy.reset(first("PUT", Lose.ANSWER))
    with pytest.raises(KeyExists):
        behind_proxy.create("token", b"the same bytes")
    assert proxy.seen["PUT"] == 2


def test_create_tries_again_while_another_is_in_flight(proxy: S3Proxy, behind_proxy: Store) -> None:
    conflict = Answer(409, "ConditionalRequestConflict")
    proxy.reset(first("PUT", conflict))
    behind_proxy.create("token", b"mine")
    assert behind_proxy.get("token") == b"mine"
    proxy.reset(first("PUT", conflict, times=ATTEMPTS))
    with pytest.raises(StoreUnavailable, match="ConditionalRequestConflict"):
        behind_proxy.create("other", b"mine")


def test_lost_answers_are_asked_for_again(proxy: S3Proxy, behind_proxy: Store) -> None:
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        proxy.reset(first(method, Lose.ANSWER))
        behind_proxy.put("k", b"v")
        assert behind_proxy.get("k") == b"v"
        assert behind_proxy.head("k").bytes_ == 1
        behind_proxy.delete("k")
        assert proxy.seen[method] == 2


def test_body_that_breaks_off_is_read_again(proxy: S3Proxy, behind_proxy: Store) -> None:
    data = Random(3).randbytes(200_000)
    behind_proxy.put("k", data)
    proxy.reset(first("GET", Lose.HALF))
    assert behind_proxy.get("k") == data
    proxy.reset(first("GET", Lose.HALF, times=ATTEMPTS))
    with pytest.raises(StoreUnavailable, match="breaks off"):
        behind_proxy.get("k")


def test_byte_that_changes_on_the_way_down_is_read_again(proxy: S3Proxy, behind_proxy: Store) -> None:
    behind_proxy.put("k", b"precious")
    proxy.reset(first("GET", Lose.BIT_DOWN))
    assert behind_proxy.get("k") == b"precious"
    assert proxy.seen["GET"] == 2


def test_byte_that_changes_on_the_way_up_is_refused(proxy: S3Proxy, behind_proxy: Store) -> None:
    proxy.reset(first("PUT", Lose.BIT_UP))
    behind_proxy.put("k", b"precious")  # sent again, the plain way
    assert (behind_proxy.get("k"), proxy.seen["PUT"]) == (b"precious", 2)
    behind_proxy.delete("k")
    proxy.reset(first("PUT", Lose.BIT_UP, times=9))
    with pytest.raises(StoreUnavailable):
        behind_proxy.put("k", b"precious")
    with pytest.raises(KeyMissing):
        behind_proxy.get("k")


def test_denied_delete_is_found_by_check(proxy: S3Proxy, behind_proxy: Store) -> None:
    proxy.reset(first("DELETE", Answer(403, "AccessDenied")))
    assert "allow these credentials to get, put, list and delete" in complaint(behind_proxy)


# --- large objects ---


def test_large_object_goes_in_parts(proxy: S3Proxy, behind_proxy: Store) -> None:
    data = Random(5).randbytes(PARTS_ABOVE + 5_000_003)
    proxy.reset(first("PUT", Lose.ANSWER))
    behind_proxy.put("large", memoryview(data))
    assert behind_proxy.head("large").bytes_ == len(data)
    assert behind_proxy.get("large") == data
    assert proxy.seen["PUT"] == 5 + 1


def test_failed_upload_leaves_nothing(seaweedfs: S3Server, proxy: S3Proxy, behind_proxy: Store) -> None:
    data = bytes(PARTS_ABOVE + 1)
    client, bucket = seaweedfs.client(), {"Bucket": seaweedfs.bucket}

    def part_is_there() -> bool:
        [upload] = client.list_multipart_uploads(**bucket)["Uploads"]
        return bool(client.list_parts(**bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts"))

    def refuse_all_but_the_first(request: Request) -> Answer | None:
        """By then a part is stored, and none is on its way, which the server may put away after all was given up."""
        if request.method != "PUT" or request.number == 0:
            return None
        wait_for(part_is_there, "a part is stored")
        return Answer(403, "AccessDenied")

    proxy.reset(refuse_all_but_the_first)
    with pytest.raises(StoreUnavailable, match="access is denied"):
        behind_proxy.put("large", data)
    with pytest.raises(KeyMissing):
        behind_proxy.head("large")
    assert not client.list_multipart_uploads(**bucket).get("Uploads")


# --- processes ---


def test_store_is_used_on_both_sides_of_a_fork(seaweedfs: S3Server, opened: OpenHere) -> None:
    store = opened(seaweedfs)
    store.put("before", b"x")
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            assert store.get("before") == b"x"

    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(keep_busy) for _ in range(2)]
        children = [fork(lambda n=n: store.create("who", b"%d" % n)) for n in range(3)]  # type: ignore[misc]
        ended = [ended_within(child, 240) for child in children]
        stop.set()
        for worker in busy:
            worker.result()
    assert sorted(ended) == [0, 1, 1]
    assert store.get("who") == b"%d" % ended.index(0)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child; it exits with 0, 1 for KeyExists, 2 for anything else."""
    child = os.fork()
    if child:
        return child
    status = 2
    try:
        work()
        status = 0
    except KeyExists:
        status = 1
    finally:
        os._exit(status)


def ended_within(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.02)


def test_store_outlives_a_killed_and_restarted_server(opened: OpenHere) -> None:
    with s3_server("localbucket") as server:
        store = opened(server)
        store.put("k", b"kept")
        server.kill()
        with pytest.raises(StoreUnavailable):
            store.get("k")
        server.start()
        assert store.get("k") == b"kept"
