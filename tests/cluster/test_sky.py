"""The sky backend, on a SkyPilot whose machines are folders of this one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError, Command, Node, Occupied, Rented, TwoKinds, Unreachable, _sky_pods, open_cluster
from cluster._sky_rent import Landlord
from cluster._sky_task import parse_settings
from cluster._ssh_link import close_links
from cluster.sky import SkyCluster
from tests.contracts.cluster import OTHER, OWNER, RealClusterContract
from tests.testbed.runs import wait_for
from tests.testbed.sky import fake_driver

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or fake_driver.SSHD is None, reason="needs Linux and OpenSSH's server"
)

ROOT = Path(__file__).resolve().parents[2]


class Bed:
    """A fake SkyPilot, and clusters on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "sky"
        self.work = folder / "work"
        self.settings = {
            "skypilot": str(fake_driver.make(self.folder)),
            "resources": {"infra": "fake", "use_spot": True},
            "shared": True,
        }
        Path("/run/sshd").mkdir(exist_ok=True)

    def open(self, **more: Any) -> SkyCluster:
        found = open_cluster("sky", {**self.settings, **more}, ROOT, self.work)
        assert isinstance(found, SkyCluster)
        return found

    def lose(self, cluster: SkyCluster, run: str) -> None:
        fake_driver.end(self.folder / cluster.nodes(run, 1)[0].name)

    def calls(self) -> list[str]:
        return [call["do"] for call in fake_driver.calls(self.folder)]

    def end(self) -> None:
        close_links()
        for machines in self.folder.glob("fgl-*/"):
            fake_driver.end(machines)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    bed = Bed(tmp_path_factory.mktemp("bed"))
    yield bed
    bed.end()


@pytest.fixture
def own_bed(tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path)
    yield bed
    bed.end()


class TestSky(RealClusterContract):
    @pytest.fixture
    def cluster(self, bed: Bed) -> Iterator[SkyCluster]:
        yield bed.open()
        for work in bed.folder.glob("fgl-*/home*/.local"):  # each test begins afresh, on machines that are rented once
            shutil.rmtree(work)


def ready(cluster: SkyCluster, run: str, count: int) -> list[Node]:
    for node in cluster.nodes(run, count):
        cluster.make_ready(node)
    return cluster.nodes(run, count)


def program(cluster: SkyCluster, node: Node, source: str) -> Any:
    return cluster.start(node, Command("program", (node.python, "-c", source), {}))


def of_spot(cluster: SkyCluster, run: str) -> bool:
    held = cluster.held(run)
    assert held is not None
    return held.offer.spot


def test_other_kind_of_machines_is_launched_when_it_is_preferred(own_bed: Bed) -> None:
    cluster = own_bed.open()
    assert isinstance(cluster, TwoKinds)
    assert cluster.held("run") is None
    cluster.prefer("run", spot=False)
    ready(cluster, "run", 1)
    assert of_spot(cluster, "run") is False
    cluster.prefer("run", spot=True)
    ready(cluster, "run", 1)
    assert of_spot(cluster, "run") is False, "what is rented stays"
    ready(cluster, "other", 1)
    assert of_spot(cluster, "other") is True, "as the settings say"


def test_what_was_taken_is_known_with_its_own_price(own_bed: Bed) -> None:
    (own_bed.folder / "here-is-full").touch()
    cluster = own_bed.open()
    [node, _] = ready(cluster, "run", 2)
    held = cluster.held("run")
    assert held is not None
    assert (held.offer.where, held.offer.nodes, held.offer.dollars_per_hour) == ("Fake/there", 2, 5.0)
    assert cluster.offers(2)[0].dollars_per_hour == 3.0, "the cheapest"
    sleeper = program(cluster, node, "import time; time.sleep(600)")
    own_bed.lose(cluster, "run")
    wait_for(lambda: sleeper.poll() is not None, "the loss is noticed", 240)
    assert cluster.held("run") is None
    ready(cluster, "run", 2)
    again = cluster.held("run")
    assert again is not None
    assert again.number != held.number


@pytest.mark.parametrize("missing", [True, False])
def test_prices_are_known_where_there_is_one_kind_only(own_bed: Bed, missing: bool) -> None:
    (own_bed.folder / f"no-{'spot' if missing else 'on-demand'}").touch()
    price = fake_driver.PRICES[not missing]
    assert own_bed.open().prices() == (price, price)


def test_price_is_not_known_where_nothing_is_offered(own_bed: Bed) -> None:
    for kind in ("spot", "on-demand"):
        (own_bed.folder / f"no-{kind}").touch()
    assert own_bed.open().prices() is None


def test_prices_are_those_of_each_kind_whatever_the_choices_say(own_bed: Bed) -> None:
    choices = [{"infra": "fake", "use_spot": True}]
    cluster = own_bed.open(resources={"any_of": choices})
    assert {offer.spot for offer in cluster.offers(1, spot=False)} == {False}
    assert cluster.prices() == (1.5, 4.0)


def test_programs_in_pods_know_where_the_pods_end_is_told(own_bed: Bed, tmp_path: Path) -> None:
    source = f"import os; print(os.environ.get({_sky_pods.VARIABLE!r}, 'none'))"
    pods = own_bed.open(resources={"infra": "k8s"})
    assert told(pods, ready(pods, "run", 1)[0], source) == _sky_pods.FILE
    machines = own_bed.open(resources={"infra": "fake"})
    assert told(machines, ready(machines, "other", 1)[0], source) == "none"
    own = own_bed.open(resources={"infra": "k8s"}, env={_sky_pods.VARIABLE: "/own"})
    assert told(own, ready(own, "own", 1)[0], source) == "/own"


def told(cluster: SkyCluster, node: Node, source: str) -> str:
    assert program(cluster, node, source).wait(240) == 0
    return cluster.read(node, "program.log", 0).decode().strip()


def test_nothing_is_rented_before_a_node_is_made_ready(own_bed: Bed) -> None:
    cluster = own_bed.open()
    assert isinstance(cluster, Rented)
    cluster.nodes("run", 2)
    cluster.hardware(cluster.nodes("run", 2))
    assert not (own_bed.folder / "calls").exists()
    offers = cluster.offers(2)
    assert [(o.where, o.nodes, o.spot, o.dollars_per_hour) for o in offers] == [
        ("Fake/here", 2, True, 3.0),
        ("Fake/there", 2, True, 5.0),
    ]
    assert cluster.prices() == (1.5, 4.0)
    [report] = cluster.inspect()
    assert (report.node, report.python, report.problem) == ("Fake/here", "SkyPilot fake", "")
    assert set(own_bed.calls()) == {"offers", "hello"}


def test_lost_machines_are_told_rented_anew_and_given_back(own_bed: Bed) -> None:
    cluster = own_bed.open()
    nodes = ready(cluster, "run", 2)
    sleepers = [program(cluster, node, "import time; time.sleep(600)") for node in nodes]
    other = program(cluster, ready(cluster, "other", 1)[0], "import time; time.sleep(600)")
    assert [s.poll() for s in sleepers] == [None, None]
    own_bed.lose(cluster, "run")
    wait_for(lambda: all(s.poll() is not None for s in sleepers), "the loss is noticed", 240)
    assert other.poll() is None
    with pytest.raises(Unreachable, match="not rented"):
        program(cluster, nodes[0], "pass")
    for sleeper in sleepers:  # what a supervisor does with what has died
        sleeper.terminate()
        sleeper.kill()
    nodes = [cluster.renew(node) for node in nodes]
    assert program(cluster, nodes[1], "raise SystemExit(3)").wait(240) == 3
    assert [s.poll() for s in sleepers] == [-9, -9]
    assert own_bed.calls().count("launch") == 3
    cluster.give_back("run")
    assert [f.name for f in own_bed.folder.glob("fgl-*/")] == [cluster.nodes("other", 1)[0].name]
    assert cluster.nodes("run", 2) != nodes
    cluster.give_back("run")  # no error


def test_run_that_was_given_back_is_rented_again(own_bed: Bed) -> None:
    cluster = own_bed.open()
    [node] = ready(cluster, "run", 1)
    earlier = program(cluster, node, "import time; time.sleep(600)")
    own_bed.lose(cluster, "run")
    wait_for(lambda: earlier.poll() is not None, "the loss is noticed", 240)
    cluster.give_back("run")
    [node] = ready(cluster, "run", 1)
    later = program(cluster, node, "import time; time.sleep(600)")
    assert later.poll() is None
    assert earlier.poll() == -9, "what was lost is not taken for what runs now"
    earlier.kill()
    assert later.poll() is None
    cluster.give_back("run")
    assert later.poll() == -9
    assert ready(cluster, "run", 2)[1].name == node.name + "-worker1"


def test_job_that_died_is_started_again_on_the_same_machines(own_bed: Bed) -> None:
    cluster = own_bed.open()
    [node] = ready(cluster, "run", 1)
    file = Path(node.folder) / "kept"
    file.touch()
    [job] = json.loads((own_bed.folder / f"{node.name}.jobs").read_text())
    close_links()
    os.kill(job, 9)
    again = own_bed.open()  # as another process, which knows the record only
    again.make_ready(again.nodes("run", 1)[0])
    assert program(again, node, "raise SystemExit(3)").wait(240) == 3
    assert file.exists()
    assert (own_bed.calls().count("launch"), own_bed.calls().count("run_job")) == (1, 1)


def test_another_process_finds_what_runs(own_bed: Bed) -> None:
    cluster = own_bed.open()
    [node] = ready(cluster, "run", 1)
    sleeper = program(cluster, node, "import time; time.sleep(600)")
    other = own_bed.open()
    found = other.find(other.nodes("run", 1)[0], "program")
    assert found is not None
    assert found.pid == sleeper.pid
    only_folder = Node(node.folder, "", node.folder, "", "")  # all that a run's record has
    assert other.read(only_folder, "program.log", 0) == b""
    found.kill()
    wait_for(lambda: sleeper.poll() is not None, "it ends", 240)
    assert other.find(node, "program") is None


def test_machines_of_another_run_of_the_name_are_left_to_it(own_bed: Bed) -> None:
    first, second = own_bed.open(), own_bed.open()
    first.claim(first.nodes("run", 1)[0], OTHER)
    [node] = ready(first, "run", 1)
    first.claim(node, OTHER)
    at_work = program(first, node, "import time; time.sleep(600)")
    with pytest.raises(Occupied, match="a run called run, of file:///other, is at work there"):
        second.claim(second.nodes("run", 1)[0], OWNER)
    sshd = own_bed.folder / f"{node.name}.sshd"
    close_links()
    sshd.rename(sshd.with_suffix(".away"))
    with pytest.raises(Occupied, match="a run called run, of file:///other, is at work there"):  # it does not answer
        own_bed.open().claim(second.nodes("run", 1)[0], OWNER)
    close_links()
    sshd.with_suffix(".away").rename(sshd)
    found = own_bed.open().find(node, "program")
    assert found is not None
    assert found.pid == at_work.pid
    found.kill()
    second.claim(second.nodes("run", 1)[0], OWNER)
    assert own_bed.calls().count("launch") == 1
    first.give_back("run")
    assert first.held("run"), "they are another run's by now"
    second.give_back("run")
    assert not first.held("run")


def test_cluster_that_another_machine_has_launched_is_not_launched_in_its_place(own_bed: Bed, tmp_path: Path) -> None:
    ready(own_bed.open(), "run", 1)
    elsewhere = open_cluster("sky", own_bed.settings, ROOT, tmp_path / "elsewhere")
    with pytest.raises(Occupied, match=r"has a cluster called (fgl-run-\w+) that this machine .* `sky down \1` first"):
        elsewhere.claim(elsewhere.nodes("run", 1)[0], OWNER)
    assert own_bed.calls().count("launch") == 1


def test_more_nodes_than_are_rented_are_rented_anew(own_bed: Bed) -> None:
    cluster = own_bed.open()
    ready(cluster, "run", 1)
    with pytest.raises(ClusterError, match="has 1 machines, not 2: it does not grow"):
        cluster.nodes("run", 2)  # as a supervisor that looks for another node
    again = own_bed.open()
    assert len(ready(again, "run", 2)) == 2
    assert program(again, again.nodes("run", 2)[1], "raise SystemExit(3)").wait(240) == 3


def test_machines_of_their_own_get_a_copy_of_the_project(own_bed: Bed, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "notes").write_text("as it is here")
    settings = {**own_bed.settings, "shared": False, "python": sys.executable}
    cluster = open_cluster("sky", settings, project, own_bed.work)
    assert isinstance(cluster, SkyCluster)
    [node] = ready(cluster, "run", 1)
    assert node.project != str(project)
    assert program(cluster, node, "print(open('notes').read())").wait(240) == 0
    assert cluster.read(node, "program.log", 0) == b"as it is here\n"


def test_nothing_is_rented_for_a_run_whose_project_is_not_here(own_bed: Bed, tmp_path: Path) -> None:
    settings = {**own_bed.settings, "shared": False, "python": sys.executable}
    cluster = open_cluster("sky", settings, tmp_path / "gone", own_bed.work)
    with pytest.raises(ClusterError, match="/gone, where the run was begun, is not on this machine: put a copy"):
        cluster.make_ready(cluster.nodes("run", 1)[0])
    assert not (own_bed.folder / "calls").exists()


def test_machines_that_are_not_to_be_had_are_one_line(own_bed: Bed) -> None:
    (own_bed.folder / "full").touch()
    cluster = own_bed.open()
    with pytest.raises(ClusterError, match="^SkyPilot: no machines anywhere$"):
        cluster.make_ready(cluster.nodes("run", 1)[0])
    (own_bed.folder / "full").unlink()
    cluster.make_ready(cluster.nodes("run", 1)[0])


def test_job_that_does_not_start_is_told_with_its_last_words(own_bed: Bed) -> None:
    settings = parse_settings(own_bed.settings)
    cluster = SkyCluster(settings, ROOT, Broken(settings, own_bed.work), start_s=0.5)
    with pytest.raises(ClusterError, match="job said: no disk$"):
        cluster.make_ready(cluster.nodes("run", 1)[0])


class Broken(Landlord):
    """Has jobs that end at once."""

    def task(self, cluster: str, count: int) -> dict[str, Any]:
        return {**super().task(cluster, count), "run": "echo no disk; exit 1"}


def test_missing_skypilot_says_how_to_install_it(own_bed: Bed, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no /no/sky/bin/python: .*uv venv .*/no/sky &&.*skypilot\[aws\]==0\.14"):
        own_bed.open(skypilot="/no/sky/bin/python").offers(1)
