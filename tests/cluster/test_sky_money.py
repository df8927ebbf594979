"""What the command line has rented, of which kind and when, on a SkyPilot whose machines are folders."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster._sky_task import cluster_name
from tests.cluster.test_sky import Bed, pytestmark  # noqa: F401  (as there, it needs OpenSSH's server)
from tests.testbed.runs import Runs, wait_for
from tests.testbed.sky import fake_driver

RECIPE = ("recipes/quickstart.py", "--nodes", "1", "--gpus", "1", "--cluster", "cloud", "--name", "run")
SHORT = ("--max-hours", "0.0001")  # ends it as soon as it has begun


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path)
    yield bed
    bed.end()


@pytest.fixture
def runs(bed: Bed, tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path, FGLAUNCH_CLUSTERS=str(tmp_path / "clusters.toml"))
    configure(bed, spot=True)
    yield runs
    runs.end()


def configure(bed: Bed, *, spot: bool, skypilot: str = "") -> None:
    (bed.folder.parent / "clusters.toml").write_text(
        f'[cloud]\nkind = "sky"\nshared = true\nskypilot = "{skypilot or bed.settings["skypilot"]}"\n'
        f'resources = {{ infra = "fake", use_spot = {str(spot).lower()} }}\n'
    )


def launches(bed: Bed) -> list[str]:
    """Return the kinds that were asked for so far."""
    calls = fake_driver.calls(bed.folder)
    asked = [call["config"]["resources"]["use_spot"] for call in calls if call["do"] == "launch"]
    return ["spot" if spot else "on-demand" for spot in asked]


def registered(runs: Runs) -> bool:
    return (runs.folder / "store" / "runs" / "run" / "run.json").exists()


def test_first_machines_are_of_the_kind_that_the_deadline_wants(bed: Bed, runs: Runs) -> None:
    configure(bed, spot=False)  # which counts without a deadline only
    done = runs.call(*RECIPE, *SHORT, "--deadline", "12h")
    assert (done.returncode, launches(bed)) == (1, ["spot"]), done.stderr
    assert "--max-hours 0.0001 is reached" in done.stderr
    assert not list(bed.folder.glob("fgl-*/")), "they were given back"


def test_limits_are_looked_at_before_machines_are_rented_and_the_policy_is_asked_again(bed: Bed, runs: Runs) -> None:
    (bed.folder / "full-spot").touch()
    done = runs.call(*RECIPE, *SHORT, "--deadline", "12h")
    assert (done.returncode, launches(bed)) == (1, ["spot", "on-demand"]), done.stderr
    refused = runs.call("resume", "run")
    assert (refused.returncode, launches(bed)) == (2, ["spot", "on-demand"]), "nothing was rented"
    assert "say a higher one to go on" in refused.stderr
    (bed.folder / "full-spot").unlink()
    with runs.start("run", "resume", "run", "--max-hours", "1") as run:
        wait_for(lambda: launches(bed)[2:] or run.process.poll() is not None, "machines are rented")
        assert launches(bed)[2:] == ["spot"], run.output()


def test_machines_that_were_lost_meanwhile_are_no_obstacle_to_going_on(bed: Bed, runs: Runs) -> None:
    with runs.start("run", *RECIPE) as run:
        wait_for(lambda: "has 1.50 $/h" in run.output(), "machines are rented")
        assert runs.call("stop", "run").returncode == 0
        assert run.wait() == 0
    machines = bed.folder / cluster_name("run")
    assert machines.exists(), "who has stopped it may soon go on with it"
    fake_driver.end(machines)
    with runs.start("run", "resume", "run") as run:
        wait_for(lambda: launches(bed)[1:] or run.process.poll() is not None, "others are rented")
        assert launches(bed) == ["spot", "spot"], run.output()


@pytest.mark.parametrize(
    ("missing", "kinds"),
    [((), [True, True, False, False]), (("no-spot",), [False, False]), (("no-spot", "no-on-demand"), [])],
)
def test_dry_run_with_a_deadline_shows_offers_of_both_kinds(
    bed: Bed, runs: Runs, missing: tuple[str, ...], kinds: list[bool]
) -> None:
    for name in missing:
        (bed.folder / name).touch()
    done = runs.call(*RECIPE, "--deadline", "12h", "--dry-run")
    offers = [line for line in done.stdout.splitlines() if line.startswith("offer ")]
    assert ["(spot)" in offer for offer in offers] == kinds, done.stderr
    assert done.returncode == (0 if kinds else 2)
    assert not launches(bed)


@pytest.mark.parametrize("missing", ["offers", "skypilot"])
def test_what_cannot_be_rented_is_said_in_a_line_before_a_run_is_registered(bed: Bed, runs: Runs, missing: str) -> None:
    if missing == "offers":
        (bed.folder / "no-spot").touch()
    else:
        configure(bed, spot=True, skypilot="/no/sky/bin/python")
    done = runs.call(*RECIPE)
    line = "SkyPilot: no such machines" if missing == "offers" else "there is no /no/sky/bin/python"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"fglaunch: {line}")
    assert not registered(runs)
    assert not launches(bed)


def test_kind_that_is_not_on_offer_at_all_is_done_without(bed: Bed, runs: Runs) -> None:
    (bed.folder / "no-spot").touch()
    (bed.folder / "full-spot").touch()
    done = runs.call(*RECIPE, *SHORT, "--deadline", "12h", "--max-cost", "100")
    assert (done.returncode, launches(bed)) == (1, ["spot", "on-demand"]), done.stderr


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_launch_is_called_off_at_once_and_what_it_had_begun_is_given_back(bed: Bed, runs: Runs, sig: int) -> None:
    (bed.folder / "slow").touch()
    with runs.start("run", *RECIPE, "--nodes", "2", "--deadline", "12h") as run:
        wait_for(lambda: (bed.folder / cluster_name("run")).exists(), "the launch has begun")
        run.process.send_signal(sig)
        assert run.wait() == 130, run.output()
        assert "called off; SkyPilot gives back" in run.output()
    assert launches(bed) == ["spot"]
    assert not (bed.folder / cluster_name("run")).exists()
    (bed.folder / "slow").unlink()
    resumed = runs.call("resume", "run", *SHORT)
    assert "--max-hours 0.0001 is reached" in resumed.stderr


def test_launch_that_fails_is_tried_once_whatever_the_number_of_nodes(bed: Bed, runs: Runs) -> None:
    (bed.folder / "full").touch()
    done = runs.call(*RECIPE, "--nodes", "3")
    assert (done.returncode, launches(bed)) == (1, ["spot"]), done.stderr


def test_run_that_gets_no_machines_fails_and_can_be_gone_on_with(bed: Bed, runs: Runs) -> None:
    (bed.folder / "full").touch()
    done = runs.call(*RECIPE)
    assert done.returncode == 1
    assert "run failed: capacity: SkyPilot: no machines anywhere" in done.stderr
    (bed.folder / "full").unlink()
    resumed = runs.call("resume", "run", *SHORT)
    assert "--max-hours 0.0001 is reached" in resumed.stderr
