"""What we tell SkyPilot, read by SkyPilot itself, with small price catalogs in place of the network's.

Needs SkyPilot's environment: `scripts/install_sky .venv-sky aws kubernetes`; FGLAUNCH_TEST_SKYPILOT names another.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError, _sky_holder, _sky_pods
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
POD = """\
import json, sys
import sky
from sky.provision.kubernetes import utils
container = {"name": "ray-node", "image": "x", "lifecycle": {"preStop": {"exec": {"command": ["theirs", "and more"]}}}}
types = {"ray_head_default": {"node_config": {"spec": {"containers": [container, {"name": "other"}]}}}}
found = []
for resources in sky.Task.from_yaml_config(json.load(sys.stdin)).resources:
    cloud, overrides = sky.clouds.Kubernetes(), resources.cluster_config_overrides
    made = utils.combine_pod_config_fields({"available_node_types": types}, overrides, cloud, "context")
    pod = made["available_node_types"]["ray_head_default"]["node_config"]
    assert utils.check_pod_config(pod)[0], utils.check_pod_config(pod)
    found.append(pod)
print(json.dumps(found))
"""  # as sky.backends.backend_utils.write_cluster_config does

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


def pods(config: dict[str, Any], home: Path) -> Any:
    """Return the pods that SkyPilot would make of a task, one for each choice."""
    env = os.environ | {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [str(PYTHON), "-c", POD], input=json.dumps(config), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(
    not [*PYTHON.parents[1].glob("lib/python3*/site-packages/kubernetes")],
    reason=f"SkyPilot at {PYTHON} knows no Kubernetes: scripts/install_sky .venv-sky aws kubernetes",
)
@pytest.mark.parametrize("more", [{"infra": "k8s"}, {"any_of": [{"infra": "aws/us-east-1"}, {"infra": "k8s"}]}])
def test_pod_gets_the_hook_and_the_grace(driver: Driver, tmp_path: Path, more: dict[str, Any]) -> None:
    config = task(accelerators="A100:8", **more)
    driver.ask("validate", config=config)
    found = pods(config, tmp_path)
    assert len(found) == len(more.get("any_of", [0]))
    for pod in found:
        assert pod["spec"]["terminationGracePeriodSeconds"] == 120
        ours, other = pod["spec"]["containers"]
        assert ours["image"] == "x"
        assert ours["lifecycle"]["preStop"]["exec"]["command"] == ["/bin/sh", "-c", _sky_pods.hook(_sky_pods.FILE, 120)]
        assert "lifecycle" not in other


def test_skypilots_container_is_called_as_we_think_and_outlasts_sigterm() -> None:
    [template] = PYTHON.parents[1].glob("lib/python3*/site-packages/sky/templates/kubernetes-ray.yml.j2")
    text = template.read_text(encoding="utf-8")
    assert "\n        - name: ray-node\n" in text
    assert "trap : TERM INT\n" in text
    assert "medium: Memory" in text  # /dev/shm is the pod's own


def test_tasks_elsewhere_know_of_no_pods(driver: Driver) -> None:
    read = driver.ask("validate", config=task(infra="aws", accelerators="A100:8"))
    assert "_cluster_config_overrides" not in read["resources"]
