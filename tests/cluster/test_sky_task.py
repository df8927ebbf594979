"""What is said to SkyPilot, and what it says: pure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import ClusterError, Node, Offer
from cluster import _sky_task as words
from cluster._sky_rent import Rent, decode, encode

RESOURCES = {"infra": "aws", "accelerators": "A100:8", "use_spot": True}


def settings(**more: Any) -> words.SkySettings:
    return words.parse_settings({"resources": RESOURCES, **more})


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({}, "needs resources"),
        ({"resources": "A100"}, "resources is 'A100', and should be a table"),
        ({"resources": {}, "idle_minutes": 0}, "idle_minutes is 0, and should be a whole number"),
        ({"resources": {}, "idle_minutes": True}, "idle_minutes is True"),
        ({"resources": {}, "setup": ["x"]}, "setup is .'x'., and should be shell commands"),
        ({"resources": {}, "hosts": ["a"]}, "no setting 'hosts'; there are: .*idle_minutes.*pass_env"),
        ({"resources": {}, "pass_env": "HF_TOKEN"}, "pass_env is 'HF_TOKEN', and should be a list of strings"),
    ],
)
def test_mistakes_are_named(entry: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ClusterError, match=f"^clusters.toml: .*{complaint}") as caught:
        words.parse_settings(entry)
    assert "\n" not in str(caught.value)


def test_task_has_what_the_entry_says() -> None:
    found = settings(file_mounts={"/data": "s3://birds"}, setup="nvidia-smi")
    task = words.task(found, "fgl-a", 3, "HOLDER = 1\n", "k")
    assert task["num_nodes"] == 3
    assert task["resources"] == RESOURCES
    assert task["file_mounts"] == {"/data": "s3://birds"}
    assert task["setup"] == "nvidia-smi"
    assert "\nHOLDER = 1\nEND_OF_HOLDER\n" in task["run"]
    assert task["run"].splitlines()[-1].endswith("holder.py serve fgl-a-k 600")
    assert {"file_mounts", "setup"}.isdisjoint(words.task(settings(), "fgl-a", 1, "", "k"))


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=120))
def test_any_run_has_a_name_that_skypilot_takes_and_nodes_of_its_own(run: str) -> None:
    name = words.cluster_name(run)
    assert words.re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 45
    nodes = words.node_names(name, 3)
    assert len(set(nodes)) == 3
    assert {words.cluster_of(node) for node in nodes} == {name}


def test_names_of_runs_that_look_alike_differ() -> None:
    assert words.cluster_name("a.b") != words.cluster_name("a-b")


@pytest.mark.parametrize(
    ("resources", "minutes"),
    [
        ({"infra": "aws"}, 10),
        ({"accelerators": "A100"}, 10),
        ({"infra": "slurm/lab"}, None),
        ({"infra": "slurm"}, None),
        ({"any_of": [{"infra": "slurm/lab"}, {"infra": "slurm/other"}]}, None),
        ({"any_of": [{"infra": "slurm/lab"}, {"infra": "aws"}]}, 10),
    ],
)
def test_autostop_is_left_to_the_job_on_slurm_alone(resources: dict[str, Any], minutes: int | None) -> None:
    assert words.autostop(settings(resources=resources)) == minutes


@pytest.mark.parametrize(
    ("accelerators", "count"),
    [("A100:8", 8), ("A100", 1), ({"H100": 4}, 4), (None, 0), (["A100:1", "H100:2"], 0), ("tpu:x", 0)],
)
def test_gpus_that_are_asked_for(accelerators: Any, count: int) -> None:
    assert words.gpus(settings(resources={"accelerators": accelerators})) == count


def test_gpus_are_those_of_the_smallest_choice() -> None:
    resources = {"any_of": [{"accelerators": "A100:8"}, {"accelerators": "H100:4"}]}
    assert words.gpus(settings(resources=resources)) == 4


def test_offer_reads_as_one_line() -> None:
    raw = {
        "cloud": "AWS",
        "region": "us-east-1",
        "zone": None,
        "machine": "p4d.24xlarge",
        "accelerators": {"A100": 8.0},
        "spot": True,
        "nodes": 2,
        "dollars_per_hour": 23.14,
    }
    offer = words.parse_offer(raw)
    assert str(offer) == "23.14 $/h: 2 x p4d.24xlarge A100:8 (spot) in AWS/us-east-1"


def test_rent_comes_back_as_it_was_written() -> None:
    nodes = (Node("a", "10.0.0.1", "/w/a", "py", "/p"),)
    rent = Rent(3, ("a",), ("10.0.0.1",), 7, Offer("AWS", "m", 1, False, 0.5), nodes)
    assert decode(encode(rent)) == rent


def test_kind_that_is_preferred_goes_over_what_the_settings_say() -> None:
    resources = {"use_spot": True, "any_of": [{"infra": "aws", "use_spot": False}, {"infra": "gcp"}]}
    found = words.of_kind(resources, spot=False)
    assert [found["use_spot"], *(choice["use_spot"] for choice in found["any_of"])] == [False] * 3
    assert [choice["infra"] for choice in found["any_of"]] == ["aws", "gcp"]
    assert resources["use_spot"] is True, "the settings stay"
    assert words.of_kind({"infra": "aws"}, spot=True) == {"infra": "aws", "use_spot": True}
