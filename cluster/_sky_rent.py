"""A run's machines at SkyPilot: launched, looked after, launched again when lost, torn down."""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cluster import CalledOff, ClusterError, Node, Occupied, Offer, Owner
from cluster import _host_claims as claims
from cluster import _sky_task as words
from cluster._sky_link import Driver

_HOLDER = Path(__file__).with_name("_sky_holder.py")
_ASK_AGAIN_S = 10.0
_SHOWN = 500  # characters of a job's log


class Rent(NamedTuple):
    """A run's machines, written down beside their SSH configuration.

    Attributes:
        serial: how often they were launched, or their job started; whatever ran before is gone.
        hosts: what the SSH configuration calls them, head first.
        addresses: what they call each other.
        job: the number of the job that holds the run's programs.
        offer: what was taken.
        nodes: the same machines as the run sees them; empty until they were reached.
    """

    serial: int
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    job: int
    offer: Offer
    nodes: tuple[Node, ...] = ()


def encode(rent: Rent) -> str:
    """Return a rent as JSON."""
    nodes = [node._asdict() for node in rent.nodes]
    return json.dumps({**rent._asdict(), "offer": rent.offer._asdict(), "nodes": nodes}, indent=1)


def decode(text: str) -> Rent:
    """Return the rent that `encode` has written."""
    raw = json.loads(text)
    offer, nodes = Offer(**raw["offer"]), tuple(Node(**node) for node in raw["nodes"])
    return Rent(raw["serial"], tuple(raw["hosts"]), tuple(raw["addresses"]), raw["job"], offer, nodes)


class Landlord:
    """Has SkyPilot rent machines, a cluster a run, and knows which are rented. Any thread may use it."""

    def __init__(self, settings: words.SkySettings, folder: Path, driver: Driver | None = None) -> None:
        """Make one that keeps its records in `folder`; SkyPilot is started when it is needed."""
        self._settings, self._folder, self._driver = settings, folder, driver
        self._lock = threading.RLock()
        self._well: dict[str, int] = {}  # cluster -> the serial number that this process saw well
        self._gone: dict[str, int] = {}  # cluster -> the serial number that is no more
        self._ended: dict[str, int] = {}  # cluster -> the serial number that was given back: it never comes again
        self._asking = threading.Lock()
        self._asked: dict[str, float] = {}
        self._launching = ""
        self._called_off: set[str] = set()
        self._spot: dict[str, bool] = {}  # cluster -> the kind that is preferred, over what the settings say

    def ask(self, action: str, **arguments: Any) -> Any:
        """Have SkyPilot do something; see `cluster._sky_driver`.

        Raises:
            ClusterError: it cannot.
        """
        with self._lock:
            if self._driver is None:
                self._driver = Driver(words.interpreter(self._settings), self.log)
        return self._driver.ask(action, **arguments)

    @property
    def log(self) -> Path:
        """Where all that SkyPilot prints goes."""
        return self._folder / "skypilot.log"

    def task(self, cluster: str, count: int) -> dict[str, Any]:
        """Return SkyPilot's task of a cluster."""
        task = words.task(self._settings, cluster, count, _HOLDER.read_text(encoding="utf-8"), secrets.token_hex(3))
        if cluster in self._spot:
            task["resources"] = words.of_kind(task["resources"], spot=self._spot[cluster])
        return task

    def prefer(self, cluster: str, *, spot: bool) -> None:
        """Launch a cluster with machines of this kind from now on."""
        self._spot[cluster] = spot

    def ssh_config(self, cluster: str, serial: int) -> Path:
        """Return the SSH configuration for a cluster's machines."""
        return self._folder / f"{cluster}-{serial}.ssh"

    def rent(self, cluster: str) -> Rent | None:
        """Return what is known to be rented, None if nothing is."""
        try:
            return decode((self._folder / f"{cluster}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def have(self, cluster: str, count: int, answers: Callable[[str, Rent], bool]) -> Rent:
        """Return `count` machines or more that are up, and whose job runs: rented now, if they were not.

        Args:
            cluster: its name.
            count: of machines.
            answers: tells whether the job answers on all machines, which saves asking SkyPilot.

        Raises:
            ClusterError: they are not to be had.
        """
        with self._lock:
            rent = self.rent(cluster)
            if rent is None:
                rent = self._launch(cluster, count, self._ended.get(cluster, 0))
            elif len(rent.hosts) < count or self._gone.get(cluster) == rent.serial:
                rent = self._launch(cluster, max(count, len(rent.hosts)), rent.serial)
            elif self._well.get(cluster) != rent.serial and not answers(cluster, rent):
                rent = self._look_after(cluster, rent, answers)
            self._well[cluster] = rent.serial
            return rent

    def _look_after(self, cluster: str, rent: Rent, answers: Callable[[str, Rent], bool]) -> Rent:
        """See to a cluster of which there is a record, and no answer."""
        if self.ask("status", cluster=cluster) != "UP":
            return self._launch(cluster, len(rent.hosts), rent.serial)
        if self.ask("job_runs", cluster=cluster, job=rent.job) and answers(cluster, rent):  # it was the connection
            return rent
        config = self.task(cluster, len(rent.hosts))
        found = self.ask("run_job", cluster=cluster, config=config, instead_of=rent.job)
        return self._keep(cluster, rent.serial + 1, found)

    def _launch(self, cluster: str, count: int, serial: int) -> Rent:
        self._say(f"{cluster}: SkyPilot launches {count} nodes; what it says is in {self.log}")
        idle, config = words.autostop(self._settings), self.task(cluster, count)
        self._launching = cluster  # before the look: a signal may come at any moment
        try:
            if cluster not in self._called_off:
                found = self.ask("launch", cluster=cluster, config=config, idle_minutes=idle)
                return self._keep(cluster, serial + 1, found)
        except ClusterError:
            if cluster not in self._called_off:
                raise
        finally:
            self._launching = ""
        self._say(f"{cluster}: called off; SkyPilot gives back what it has begun to launch")
        try:
            self.ask("down", cluster=cluster)
        except ClusterError as error:
            self._say(f"{cluster}: it may still be rented: {error}")
        raise CalledOff(f"{cluster}: its launch was called off")

    def call_off(self, cluster: str) -> None:
        """Launch a cluster no more, and end the launch that is going on. For handlers of signals: takes no lock."""
        self._called_off.add(cluster)
        if self._launching == cluster and self._driver:
            self._driver.abort()

    def _keep(self, cluster: str, serial: int, found: Mapping[str, Any]) -> Rent:
        offer = words.parse_offer(found["offer"])
        rent = Rent(serial, tuple(found["hosts"]), tuple(found["addresses"]), int(found["job"]), offer)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.ssh_config(cluster, serial).write_text(found["ssh_config"], encoding="utf-8")
        self.note(cluster, rent)
        self._say(f"{cluster}: has {offer}")
        return rent

    def note(self, cluster: str, rent: Rent) -> None:
        """Write down what is rented."""
        part = self._folder / f"{cluster}.part"
        part.write_text(encode(rent), encoding="utf-8")
        part.replace(self._folder / f"{cluster}.json")

    # -- whose it is --------------------------------------------------------------------------------------------------

    def owner(self, cluster: str) -> Mapping[str, Any]:
        """Return what is written down of the run that a cluster is for (see `cluster.Owner`); nothing if nobody's."""
        try:
            return claims.parse((self._folder / f"{cluster}.owner").read_bytes())
        except FileNotFoundError:
            return {}

    def own(self, cluster: str, owner: Owner) -> None:
        """Write down which run a cluster is for."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{cluster}.owner.part"
        part.write_text(json.dumps(owner._asdict()), encoding="utf-8")
        part.replace(self._folder / f"{cluster}.owner")

    def check_free(self, cluster: str, other: Mapping[str, Any]) -> None:
        """Refuse to launch a cluster in place of one that `other`, or another machine, has launched, or is about to.

        Raises:
            ClusterError
        """
        if self.ask("status", cluster=cluster) in ("MISSING", "STOPPED"):
            return
        if other:
            raise Occupied(claims.refusal(cluster, other))
        raise Occupied(
            f"SkyPilot has a cluster called {cluster} that this machine did not launch: choose another --name, or"
            f" `sky down {cluster}` first"
        )

    # -- losing -------------------------------------------------------------------------------------------------------

    def is_gone(self, cluster: str, serial: int) -> bool:
        """Whether what was started on a cluster is known to be gone with it."""
        return self._gone.get(cluster) == serial or serial < self._well.get(cluster, serial)

    def in_use(self, cluster: str, serial: int) -> bool:
        """Whether this process has seen a cluster well, and it is not known to be gone."""
        return self._well.get(cluster) == serial and not self.is_gone(cluster, serial)

    def suspect(self, cluster: str, serial: int) -> None:
        """Ask SkyPilot whether a cluster lives, in the background and not too often; `is_gone` has the answer later."""
        now = time.monotonic()
        with self._asking:
            due = now >= self._asked.get(cluster, 0.0)
            if due:
                self._asked[cluster] = float("inf")  # until there is an answer
        if due:
            threading.Thread(target=self._inquire, args=(cluster, serial), daemon=True).start()

    def _inquire(self, cluster: str, serial: int) -> None:
        try:
            rent = self.rent(cluster)
            if rent and rent.serial == serial and not self._lives(cluster, rent.job):
                self._gone[cluster] = serial
                self._say(f"{cluster}: SkyPilot has lost it")
        except ClusterError as error:
            self._say(f"{cluster} does not answer, and whether it lives cannot be told: {error}")
        finally:
            self._asked[cluster] = time.monotonic() + _ASK_AGAIN_S

    def keeps(self, cluster: str) -> bool:
        """Ask SkyPilot whether what is known to be rented is up, and its job on its way or running."""
        rent = self.rent(cluster)
        return rent is not None and self._lives(cluster, rent.job)

    def _lives(self, cluster: str, job: int) -> bool:
        return self.ask("status", cluster=cluster) == "UP" and bool(self.ask("job_runs", cluster=cluster, job=job))

    def said(self, cluster: str, job: int) -> str:
        """Return the last words of a job, in one line."""
        try:
            return " ".join(str(self.ask("logs", cluster=cluster, job=job)).split())[-_SHOWN:] or "nothing"
        except ClusterError as error:
            return str(error)

    def end(self, cluster: str) -> None:
        """Tear a cluster down; no error if there is none.

        Raises:
            ClusterError: it may still be there.
        """
        rent = self.rent(cluster)
        if rent is None:
            return
        self.ask("down", cluster=cluster)
        self._ended[cluster] = rent.serial
        self._say(f"{cluster}: given back")
        for file in self._folder.glob(f"{cluster}*"):
            file.unlink()

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
