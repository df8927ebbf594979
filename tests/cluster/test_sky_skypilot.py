"""What we tell SkyPilot, read by SkyPilot itself, with small price catalogs in place of the network's.

Needs SkyPilot's environment: `scripts/install_sky .venv-sky`, or FGLAUNCH_TEST_SKYPILOT naming its Python.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError, _sky_holder
from cluster import _sky_task as words
from cluster._sky_link import Driver
from tests.testbed.sky import catalogs

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("FGLAUNCH_TEST_SKYPILOT") or ROOT / ".venv-sky" / "bin" / "python")
ENABLE_AWS = """\
from sky import check, global_user_state
from sky.clouds import CloudCapability
global_user_state.set_allowed_clouds(check._get_workspace_allowed_clouds("default"), "default")
global_user_state.set_enabled_clouds(["AWS"], CloudCapability.COMPUTE, "default")
"""  # as `sky check` would, with an account

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=f"no SkyPilot at {PYTHON}: scripts/install_sky .venv-sky")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    home = tmp_path_factory.mktemp("home")
    catalogs.write(home)
    before = os.environ.copy()
    os.environ |= {"HOME": str(home), "TMPDIR": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    subprocess.run([str(PYTHON), "-c", ENABLE_AWS], check=True)
    driver = Driver(PYTHON, home / "log")
    driver.ask("hello")
    os.environ.clear()
    os.environ.update(before)
    yield driver
    driver.close()


def task(**resources: Any) -> dict[str, Any]:
    settings = words.parse_settings({"resources": resources, "file_mounts": {"/tmp/x": str(ROOT / "README.md")}})
    return words.task(settings, "fgl-a", 2, Path(_sky_holder.__file__).read_text(), "key")


def test_skypilot_is_the_version_that_the_driver_was_written_for(driver: Driver) -> None:
    assert driver.ask("hello")["version"].startswith(f"{words.VERSION}.")


def test_task_is_read_as_it_was_meant(driver: Driver) -> None:
    regions = [{"infra": "aws/us-east-1"}, {"infra": "aws/us-west-2", "use_spot": False}]
    config = task(accelerators="A100:8", use_spot=True, any_of=regions)
    read = driver.ask("validate", config=config)
    assert read["num_nodes"] == 2
    assert read["run"] == config["run"]
    assert read["file_mounts"] == config["file_mounts"]
    found = {(r["infra"], bool(r.get("use_spot"))) for r in read["resources"]["any_of"]}
    assert found == {("aws/us-east-1", True), ("aws/us-west-2", False)}


def test_mistake_in_resources_is_one_line(driver: Driver) -> None:
    with pytest.raises(ClusterError, match="^SkyPilot: .*did you mean 'accelerators'"):
        driver.ask("validate", config=task(accelerator="A100:8"))


def test_offers_are_priced_cheapest_first(driver: Driver) -> None:
    raw = driver.ask("offers", config=task(infra="aws", accelerators="A100:8", use_spot=True))
    offers = [words.parse_offer(r) for r in raw]
    assert offers[0].where.startswith("AWS/us-west-2")
    assert offers[0].dollars_per_hour == pytest.approx(2 * 9.83)
    assert offers[0].machine == "p4d.24xlarge A100:8"
    prices = [o.dollars_per_hour for o in offers]
    assert prices == sorted(prices)
    assert any(o.where.startswith("AWS/us-east-1") for o in offers)
    [dear, *_] = driver.ask("offers", config=task(infra="aws", accelerators="A100:8"))
    assert dear["dollars_per_hour"] == pytest.approx(2 * 32.77)


def test_any_of_regions_are_all_offered_and_no_others(driver: Driver) -> None:
    any_of = [
        {"infra": "aws/us-east-1", "accelerators": "H100:8"},
        {"infra": "aws/us-west-2", "accelerators": "A100:8"},
    ]
    offers = driver.ask("offers", config=task(use_spot=True, any_of=any_of))
    assert {(o["region"], *o["accelerators"]) for o in offers} == {("us-west-2", "A100"), ("us-east-1", "H100")}


def test_what_nobody_offers_is_an_error(driver: Driver) -> None:
    with pytest.raises(ClusterError, match="SkyPilot: "):
        driver.ask("offers", config=task(infra="aws", accelerators="V100:8"))


def test_managed_task_is_read_as_it_was_meant(driver: Driver) -> None:
    resources = {"infra": "aws", "accelerators": "A100:8", "use_spot": True}
    settings = words.parse_settings({"resources": resources, "setup": "pip install x", "managed": True})
    argv = ["python3", "-m", "launcher.job", "s3://bucket/x y", "run"]
    config = words.managed_task(settings, "fgl-run", argv, {"AWS_REGION": "us-east-1"}, str(ROOT / "recipes"))
    read = driver.ask("validate", config=config)
    assert read["run"] == "exec python3 -m launcher.job 's3://bucket/x y' run\n"
    assert read["workdir"] == str(ROOT / "recipes")
    assert read["setup"] == "pip install x"
    assert read["envs"] == {"AWS_REGION": "us-east-1"}
    assert read["resources"]["use_spot"] is True
