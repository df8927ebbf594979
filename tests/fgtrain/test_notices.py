"""Notices of preemption: what clouds and schedulers say, by their own protocols, and what a node makes of it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgtrain import notices
from fgtrain.attendant import listen
from fgtrain.errors import UserError
from fgtrain.notice import LEAD_S, Flag, Notice, Watch, leave_at, spell
from fgtrain.notices import Machine, Source, kubernetes
from fgtrain.notices._metadata import Metadata
from fgtrain.notices.aws import Aws
from fgtrain.notices.azure import Azure, scheduled
from fgtrain.notices.gcp import Gcp, maintenance, preemption
from tests.testbed.metadata import Patient, Service, metadata_service

ACTION = {"action": "terminate", "time": "2026-11-21T22:04:00Z"}
AT = 1795298640.0  # that time


@pytest.fixture
def service() -> Iterator[Service]:
    with metadata_service() as running:
        yield running


def asked(service: Service, pauses: list[float] | None = None) -> Metadata:
    return Patient(service.url, pauses.append if pauses is not None else lambda s: None)


def notice(**changes: Any) -> Notice:
    return Notice(**({"source": "aws", "what": "gone", "id": "1", "loss": True, "time": 1000.0} | changes))


# -- AWS --------------------------------------------------------------------------------------------------------------


def test_aws_says_nothing_until_the_instance_is_to_go(service: Service) -> None:
    pauses: list[float] = []
    aws = Aws(asked(service, pauses))
    assert aws.watch() == []
    service.aws["spot/instance-action"] = ACTION
    [told] = aws.watch()
    assert (told.loss, told.deadline, told.what) == (True, AT, "spot instance will terminate")
    assert pauses == [5.0]  # as often as AWS asks for; not before the first look


def test_aws_rebalance_recommendation_is_no_loss(service: Service) -> None:
    service.aws["events/recommendations/rebalance"] = {"noticeTime": "2026-11-21T22:00:00Z"}
    [told] = Aws(asked(service)).watch()
    assert not told.loss
    assert leave_at(told) is None


def test_aws_expired_token_is_replaced(service: Service) -> None:
    aws = Aws(asked(service))
    assert aws.watch() == []
    assert sum("PUT" in line for line in service.seen) == 1  # one token does for many requests
    service.tokens.clear()
    service.aws["spot/instance-action"] = ACTION
    assert len(aws.watch()) == 1
    assert sum("PUT" in line for line in service.seen) == 2


def test_aws_without_a_token_gets_nothing(service: Service) -> None:
    assert asked(service).ask("/latest/meta-data/spot/instance-action").status == 401


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"action": "stop"}', b'{"action": "stop", "time": "soon"}'])
def test_aws_rubbish_is_no_notice(service: Service, body: bytes) -> None:
    service.broken = body
    aws = Aws(asked(service))
    with pytest.raises((ValueError, KeyError)):
        aws.watch()


# -- Google Cloud -----------------------------------------------------------------------------------------------------


def test_gcp_waits_for_a_change_and_is_told_at_once(service: Service) -> None:
    wait, _ = Gcp(asked(service)).watches
    assert wait() == []
    found: list[Notice] = []
    thread = threading.Thread(target=lambda: found.extend(wait()), daemon=True)
    thread.start()
    service.wait_for("last_etag=e0")
    service.change("preempted", "TRUE")
    thread.join(240)
    [told] = found
    assert told.loss
    assert told.deadline == pytest.approx(told.time + 30)


def test_gcp_change_between_two_requests_is_not_missed(service: Service) -> None:
    wait, _ = Gcp(asked(service)).watches
    assert wait() == []
    service.change("preempted", "TRUE")
    assert [n.what for n in wait()] == ["preempted"]


def test_gcp_maintenance_leaves_time_to_train(service: Service) -> None:
    _, wait = Gcp(asked(service)).watches
    assert wait() == []
    service.change("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    [told] = wait()
    assert leave_at(told) == pytest.approx(told.time + 3600 - LEAD_S)
    assert maintenance("NONE", "e", 1.0) is None
    migration = maintenance("MIGRATE_ON_HOST_MAINTENANCE", "e", 1.0)
    assert migration and not migration.loss
    assert preemption("FALSE", "e", 1.0) is None


def test_gcp_believes_only_the_metadata_server(service: Service) -> None:
    service.broken = b"TRUE"  # a captive portal, say: it has no Metadata-Flavor
    wait, _ = Gcp(asked(service)).watches
    with pytest.raises(ValueError, match="Metadata-Flavor"):
        wait()


# -- Azure ------------------------------------------------------------------------------------------------------------


def event(**changes: Any) -> dict[str, Any]:
    return {
        "EventId": "602d9444",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["vm-1"],
        "EventStatus": "Scheduled",
        "NotBefore": "Sat, 21 Nov 2026 22:04:00 GMT",
    } | changes


def test_azure_eviction_is_told_and_approved_once_the_node_has_left(service: Service) -> None:
    azure = Azure(asked(service))
    assert azure.watch() == []
    service.events = [event()]
    [told] = azure.watch()
    assert (told.id, told.loss, told.deadline) == ("602d9444", True, AT)
    assert service.approved == []
    azure.left(told)
    assert service.approved == ["602d9444"]


def test_azure_events_of_others_are_theirs(service: Service) -> None:
    azure = Azure(asked(service))
    service.events = [event(Resources=["vm-2"]), event(EventId="both", Resources=["vm-1", "vm-2"])]
    [told] = azure.watch()
    azure.left(told)
    assert told.id == "both"
    assert service.approved == []  # it is not ours to say that the other may go


def test_azure_freeze_loses_nothing_and_a_started_event_is_due_now() -> None:
    assert scheduled(event(EventType="Freeze"), 5.0) is None
    started = scheduled(event(EventStatus="Started", NotBefore=""), 5.0)
    assert started and started.deadline == 5.0


# -- Kubernetes ------------------------------------------------------------------------------------------------------


def test_pod_is_told_once_its_hook_has_made_the_file(tmp_path: Path) -> None:
    pauses: list[float] = []
    pod = kubernetes.Kubernetes(tmp_path / "ends", pauses.append)
    assert pod.watch() == []
    (tmp_path / "ends").touch()
    [told], again = pod.watch(), pod.watch()
    assert told.loss
    assert leave_at(told) == told.time == pytest.approx(time.time(), abs=60)
    assert again == [told]  # the same one, also to an agent that is started after it
    assert pauses == [0.5, 0.5]


def test_pod_is_known_by_the_variable_alone() -> None:
    assert found({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == []
    assert found({kubernetes.VARIABLE: "/x"}) == ["kubernetes"]
    assert found({kubernetes.VARIABLE: "/x", notices.VARIABLE: "off"}) == []
    assert found({notices.VARIABLE: "kubernetes"}) == ["kubernetes"]


# -- signals ----------------------------------------------------------------------------------------------------------


def machine(env: dict[str, str] | None = None, firmware: dict[str, str] | None = None) -> Machine:
    env = env or {}
    return Machine("node0", firmware or {}, env, notices.chosen(env.get(notices.VARIABLE, "")))


def test_slurm_signal_before_the_time_limit_has_the_jobs_end_as_its_deadline() -> None:
    sources = notices.find(machine({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1500"}))
    assert notices.explain(sources, signal.SIGUSR1, 1000.0).deadline == 1500.0
    assert notices.explain(sources, signal.SIGTERM, 1000.0).deadline == 1030.0
    assert notices.explain(sources, signal.SIGTERM, 1000.0).source == "slurm"


def test_sigterm_in_a_pod_is_no_word_of_kubernetes() -> None:
    sources = notices.find(machine({"KUBERNETES_SERVICE_HOST": "10.0.0.1", kubernetes.VARIABLE: "/nowhere"}))
    assert notices.explain(sources, signal.SIGTERM, 1000.0).source == "signal"


def test_bare_signal_has_no_deadline() -> None:
    told = notices.explain([], signal.SIGTERM, 1000.0)
    assert (told.source, told.deadline, told.loss) == ("signal", None, True)


# -- where ------------------------------------------------------------------------------------------------------------


def found(env: dict[str, str] | None = None, firmware: dict[str, str] | None = None) -> list[str]:
    return [s.name for s in notices.find(machine(env, firmware))]


def test_firmware_tells_the_cloud() -> None:
    assert found() == []
    assert found(firmware={"sys_vendor": "Amazon EC2"}) == ["aws"]
    assert found(firmware={"sys_vendor": "Xen", "bios_version": "4.11.amazon"}) == ["aws"]
    assert found(firmware={"product_name": "Google Compute Engine"}) == ["gcp"]
    assert found(firmware={"chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"}) == ["azure"]
    assert found(firmware={"sys_vendor": "Microsoft Corporation"}) == []  # Hyper-V in the cellar


def test_variable_overrides_the_firmware() -> None:
    on_aws = {"sys_vendor": "Amazon EC2"}
    assert found({notices.VARIABLE: "off"}, on_aws) == []
    assert found({notices.VARIABLE: "gcp, azure=http://127.0.0.1:1"}, on_aws) == ["azure", "gcp"]
    url = machine({notices.VARIABLE: "aws=http://127.0.0.1:1/{node}"}).url("aws", "")
    assert url == "http://127.0.0.1:1/node0"


@pytest.mark.parametrize("text", ["asw", "aws=https://x", "aws=127.0.0.1", "aws,,"])
def test_senseless_variable_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=f"{notices.VARIABLE}="):
        notices.chosen(text)


def test_looking_at_a_machine_asks_nobody() -> None:
    """Every source is found among its own firmware without a request: they are made by the watches alone."""
    with metadata_service() as service:
        text = ",".join(f"{n}={service.url}" for n in ("aws", "azure", "gcp"))
        assert found({notices.VARIABLE: text}) == ["aws", "azure", "gcp"]
        assert service.seen == []


def test_proxies_are_not_asked_about_this_machine(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert Aws(asked(service)).watch() == []


# -- a service in trouble ---------------------------------------------------------------------------------------------


class Enough(BaseException):
    """Ends a watch that goes on for ever."""


def test_service_that_fails_is_asked_ever_more_rarely_and_heard_when_it_is_back(service: Service) -> None:
    pauses: list[float] = []
    aws = Aws(asked(service))
    service.broken = b"<html>"

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            service.broken = None
            service.aws["spot/instance-action"] = ACTION

    def hear(told: list[Notice]) -> None:
        raise Enough(told[0].id)

    with pytest.raises(Enough, match="terminate"):
        listen(aws.watch, hear, pause)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_service_that_hangs_is_not_waited_for(service: Service) -> None:
    service.hang = threading.Event()
    with pytest.raises(TimeoutError):
        Metadata(service.url).ask("/latest/api/token", method="PUT", timeout_s=0.2)
    service.hang.set()


def test_nobody_there_is_an_error_like_any_other() -> None:
    with pytest.raises(ConnectionRefusedError):
        Aws(Metadata("http://127.0.0.1:1")).watch()


# -- the flag ---------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.none() | st.floats(-1e6, 1e7))
def test_node_leaves_no_earlier_than_it_is_told_and_no_later_than_it_must(at: float, deadline: float | None) -> None:
    due = leave_at(notice(time=at, deadline=deadline))
    assert due is not None and due >= at
    if deadline is not None:
        assert due <= max(at, deadline)
    assert leave_at(notice(time=at, deadline=deadline, loss=False)) is None


def test_rank_sees_the_flag_once_for_an_early_snapshot_and_for_ever_when_it_is_to_leave(tmp_path: Path) -> None:
    clock = iter(range(100))
    flag, watch = Flag(tmp_path), Watch(Flag(tmp_path), clock=lambda: float(next(clock)))
    assert not watch.take_save()
    flag.raise_(notice(loss=False), leave=False, now=time.time())
    assert [watch.take_save(), watch.take_save(), watch.leave] == [True, False, False]
    flag.raise_(notice(id="2", loss=False), leave=False, now=time.time())  # another recommendation
    assert [watch.take_save(), watch.take_save()] == [True, False]
    flag.raise_(notice(id="3"), leave=True, now=time.time())
    flag.raise_(notice(id="4", loss=False), leave=False, now=time.time())  # too late to matter
    watch.look()
    assert watch.leave
    assert flag.leaves


def test_flag_for_a_snapshot_before_this_rank_began_is_not_for_it(tmp_path: Path) -> None:
    flag = Flag(tmp_path)
    flag.raise_(notice(loss=False), leave=False, now=time.time() - 60)
    assert not Watch(flag).take_save()
    flag.raise_(notice(), leave=True, now=time.time() - 60)
    watch = Watch(flag)
    watch.look()
    assert watch.leave


def test_looking_costs_one_look_at_the_clock_between_two_at_the_file(tmp_path: Path) -> None:
    now = 0.0
    flag, watch = Flag(tmp_path), Watch(Flag(tmp_path), clock=lambda: now)
    watch.look()
    flag.raise_(notice(), leave=True, now=1.0)
    watch.look()
    assert not watch.leave
    now = 1.0
    watch.look()
    assert watch.leave


def test_torn_flag_is_none(tmp_path: Path) -> None:
    (tmp_path / "notice.json").write_text('{"leave": tr')
    assert Flag(tmp_path).read() is None


def test_spelling_says_what_will_be_done() -> None:
    assert spell("n", notice(loss=False), 1000.0).endswith("an early snapshot, and on")
    assert spell("n", notice(deadline=4600.0), 1000.0).endswith("and it leaves in 3450 s")


def test_source_that_knows_no_signal_says_nothing() -> None:
    assert Source().signalled(signal.SIGTERM, 0.0) is None
