"""Hosts over a real sshd on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import Cluster, ClusterError, Command, Node, Unreachable
from cluster._ssh_link import close_links
from cluster.ssh import SshCluster, open_cluster
from tests.contracts.cluster import PAUSE, RealClusterContract, Starter, lives
from tests.testbed.runs import wait_for
from tests.testbed.sshd import Sshd, client_config, skip_without, sshd


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    skip_without()
    with sshd("gpu1") as running:
        client_config(running.folder, [running])
        yield running
        close_links()


def connect(server: Sshd, project: Path, **settings: Any) -> SshCluster:
    known = {
        "hosts": ["gpu1"],
        "ssh_config": str(server.folder / "ssh_config"),
        "ssh_options": ["ConnectTimeout=240"],
        "python": sys.executable,
    }
    return open_cluster(known | settings, project, Path("/unused"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "code.py").write_text("VERSION = 1\n")
    return folder


class TestSshCluster(RealClusterContract):
    @pytest.fixture
    def cluster(self, server: Sshd, project: Path, request: pytest.FixtureRequest) -> SshCluster:
        # A work folder of each test's own: what the last left must not be found.
        return connect(server, project, slots=3, work=f"~/{request.node.name}")

    def test_naming_nodes_leaves_no_trace(self, cluster: SshCluster, server: Sshd, node: Node) -> None:
        before = sorted(server.home.rglob("*"))
        cluster.nodes("fresh", 3)
        assert sorted(server.home.rglob("*")) == before

    def test_secrets_are_in_no_command_line_and_no_file(
        self, cluster: SshCluster, server: Sshd, node: Node, start: Starter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        process = start(f"import os; print(len(os.environ['AWS_SECRET_ACCESS_KEY']), flush=True); {PAUSE}")
        wait_for(lambda: cluster.read(node, "program.log", 0) == b"11\n", "the program has the secret", 240)
        lines = [line for line in map(command_line, Path("/proc").glob("[0-9]*")) if line]
        assert any(b"# fglaunch" in line for line in lines)
        assert not any(b"very-secret" in line for line in lines)
        files = [f for f in server.home.rglob("*") if f.is_file() and not f.is_symlink()]
        assert files
        assert not any(b"very-secret" in f.read_bytes() for f in files)
        process.kill()


def test_program_outlives_the_connection_and_nothing_else_does(server: Sshd, project: Path) -> None:
    cluster = connect(server, project)
    node = cluster.nodes("outlive", 1)[0]
    cluster.make_ready(node)
    process = cluster.start(node, Command("agent", (sys.executable, "-c", PAUSE), {}))
    keeper = parent(process.pid)
    assert set(at_home(server)) > {process.pid, keeper}
    close_links()
    wait_for(lambda: set(at_home(server)) == {process.pid, keeper}, "what served the connection is gone", 240)
    later = connect(server, project).find(node, "agent")
    assert later is not None
    assert later.pid == process.pid
    later.kill()
    close_links()
    wait_for(lambda: not at_home(server), "nothing is left", 240)


def test_lost_connection_is_no_dead_program(server: Sshd, project: Path) -> None:
    cluster = connect(server, project)
    node = cluster.nodes("lost", 1)[0]
    cluster.make_ready(node)
    process = cluster.start(node, Command("agent", (sys.executable, "-c", PAUSE), {}))
    server.stop()
    try:
        wait_for(lambda: cluster.silence_s(node) > 0, "the node falls silent", 240)
        assert process.poll() is None
        assert cluster.read(node, "agent.log", 0) == b""
    finally:
        server.start()
    wait_for(lambda: cluster.silence_s(node) == 0, "the node is heard of again", 240)
    assert lives(process.pid)
    process.kill()
    assert process.poll() == -9


def test_status_of_what_ended_while_nobody_was_connected_is_known(server: Sshd, project: Path) -> None:
    cluster = connect(server, project)
    node = cluster.nodes("ended", 1)[0]
    cluster.make_ready(node)
    flag = project / "flag"
    script = f"import os, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.01)\nraise SystemExit(7)"
    process = cluster.start(node, Command("agent", (sys.executable, "-c", script), {}))
    keeper = parent(process.pid)
    close_links()
    flag.touch()
    wait_for(lambda: not lives(keeper), "the program ends, and its keeper has written that down", 240)
    later = connect(server, project)
    assert later.find(node, "agent") is None
    process._link = later._to(node)
    assert process.wait(240) == 7


def test_program_whose_keeper_was_killed_too_counts_as_killed(server: Sshd, project: Path) -> None:
    cluster = connect(server, project)
    node = cluster.nodes("keeper", 1)[0]
    cluster.make_ready(node)
    process = cluster.start(node, Command("agent", (sys.executable, "-c", PAUSE), {}))
    os.kill(parent(process.pid), 9)
    assert process.poll() is None
    os.kill(process.pid, 9)
    assert process.wait(240) == -9


def test_program_whose_folder_vanishes_is_still_known_and_killed(server: Sshd, project: Path) -> None:
    cluster = connect(server, project)
    node = cluster.nodes("vanish", 1)[0]
    cluster.make_ready(node)
    ended = cluster.start(node, Command("helper", (sys.executable, "-c", PAUSE), {}))
    process = cluster.start(node, Command("agent", (sys.executable, "-c", PAUSE), {}))
    shutil.rmtree(node.folder)  # as a scratch disk is cleaned; a reboot takes the programs, too
    os.kill(ended.pid, 9)
    assert ended.wait(240) == -9
    ended.kill()
    assert process.poll() is None
    process.terminate()
    assert process.wait(240) == -9, "there is nowhere to write down how it ended"
    assert cluster.silence_s(node) == 0


def test_code_is_sent_once_and_a_change_alone_after_that(
    server: Sshd, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q", project], check=True)
    (project / ".gitignore").write_text("ignored\n")
    (project / "ignored").write_text("x")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    (project / "link.py").symlink_to("code.py")
    first = prepared(server, project)
    assert sorted(p.name for p in Path(first.project).iterdir()) == [".gitignore", "code.py", "link.py", "run.sh"]
    assert os.access(Path(first.project) / "run.sh", os.X_OK)
    assert (Path(first.project) / "link.py").readlink() == Path("code.py")
    before = Path(first.project).resolve()
    capsys.readouterr()
    prepared(server, project)
    assert "sent" not in capsys.readouterr().err
    (project / "code.py").write_text("VERSION = 2\n")
    second = prepared(server, project)
    assert ", 1 sent" in capsys.readouterr().err
    assert (Path(second.project) / "code.py").read_text() == "VERSION = 2\n"
    assert (before / "code.py").read_text() == "VERSION = 1\n"
    os.utime(f"{before}.json", (0, 0))
    third = prepared(server, project, keep=1)
    assert not before.exists(), "what is old is removed"
    assert Path(third.project).resolve() == Path(second.project).resolve()


def prepared(server: Sshd, project: Path, **settings: Any) -> Node:
    cluster = connect(server, project, **settings)
    node = cluster.nodes("code", 1)[0]
    cluster.make_ready(node)
    return node


def test_run_that_goes_on_from_another_machine_keeps_its_code(
    server: Sshd, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "code.py").write_text("GOES_ON = 1\n")
    first = prepared(server, project)
    before = Path(first.project).resolve()
    capsys.readouterr()
    project.rename(tmp_path / "as-on-the-laptop")
    again = prepared(server, project)
    assert Path(again.project).resolve() == before
    assert capsys.readouterr().err == f"gpu1: {project} is not on this machine: it keeps its code\n"
    (tmp_path / "as-on-the-laptop").rename(project)
    (project / "code.py").write_text("GOES_ON = 2\n")
    assert (Path(prepared(server, project).project) / "code.py").read_text() == "GOES_ON = 2\n"


def test_node_without_the_code_is_refused_where_the_project_is_not(server: Sshd, project: Path) -> None:
    cluster = connect(server, project / "gone")
    complaint = f"^{project}/gone, where the run was begun, is not on this machine, and gpu1 has no code of it"
    with pytest.raises(ClusterError, match=complaint):
        cluster.make_ready(cluster.nodes("fresh-code", 1)[0])
    shared = connect(server, project / "gone", shared=True)
    node = shared.nodes("fresh-code", 1)[0]
    shared.make_ready(node)  # what hosts see of shared files is for them to say
    with pytest.raises(ClusterError, match="No such file or directory: '.*/gone'"):
        shared.start(node, Command("agent", (sys.executable, "-c", "pass"), {}))


def test_program_that_runs_keeps_the_code_it_began_with(server: Sshd, project: Path) -> None:
    cluster = connect(server, project)
    node = cluster.nodes("keeps", 1)[0]
    cluster.make_ready(node)
    script = "import os, fgtrain; print(os.getcwd(), fgtrain.__file__)"
    assert cluster.start(node, Command("agent", (sys.executable, "-c", script), {})).wait(240) == 0
    where, module = cluster.read(node, "agent.log", 0).decode().split()
    assert Path(where) == Path(node.project).resolve()
    assert where != node.project
    assert "/code/" in module  # as this machine has it, and not what happens to be installed there


def test_shared_folders_are_used_as_they_are(server: Sshd, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = connect(server, project, shared=True)
    node = cluster.nodes("shared", 1)[0]
    cluster.make_ready(node)
    assert node.project == str(project)
    assert capsys.readouterr().err == ""
    script = "import os; print(os.getcwd(), os.environ.get('PYTHONPATH'))"
    assert cluster.start(node, Command("agent", (sys.executable, "-c", script), {})).wait(240) == 0
    assert cluster.read(node, "agent.log", 0).decode().split() == [str(project), "None"]


def test_damaged_copy_of_the_code_is_not_used(server: Sshd, project: Path) -> None:
    (project / "code.py").write_text("DAMAGED = 1\n")
    first = prepared(server, project)
    (Path(first.project) / "code.py").write_text("edited by someone\n")
    (project / "other.py").write_text("")
    with pytest.raises(ClusterError, match="is not what it was: remove its folder"):
        prepared(server, project)


def test_host_that_refuses_the_key_says_what_to_do(server: Sshd, project: Path) -> None:
    options = ["PubkeyAuthentication=no"]
    with pytest.raises(ClusterError, match="gpu1: it takes none of your keys: `ssh-copy-id gpu1`"):
        connect(server, project, ssh_options=options).nodes("run", 1)


def test_unknown_host_key_says_what_to_do(server: Sshd, project: Path) -> None:
    with pytest.raises(ClusterError, match="its host key is not known here: log in once by hand"):
        connect(server, project, ssh_options=["UserKnownHostsFile=/dev/null"]).nodes("run", 1)


def test_host_without_the_interpreter_says_so(server: Sshd, project: Path) -> None:
    with pytest.raises(ClusterError, match="/no/python3 is not there"):
        connect(server, project, python="/no/python3").nodes("run", 1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"ssh_config": "/no/config"}, "gpu1: ssh_config of clusters.toml is /no/config, which cannot be read"),
        ({"ssh_options": ["ProxyCommand=/no/gate %h"]}, "gpu1: its ProxyCommand cannot be run: .*/no/gate"),
    ],
)
def test_what_is_missing_here_is_not_taken_for_the_interpreter_there(
    server: Sshd, project: Path, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ClusterError, match=complaint):
        connect(server, project, **settings).nodes("run", 1)


def test_port_that_nothing_answers_at_says_so(server: Sshd, project: Path) -> None:
    with pytest.raises(ClusterError, match="1 nodes are asked for, and there are 0; gpu1: nothing answers at its SSH"):
        connect(server, project, ssh_options=["Port=1"]).nodes("run", 1)


def test_host_that_does_not_answer_is_passed_over_where_there_are_others(server: Sshd, project: Path) -> None:
    cluster = connect(server, project, hosts=["no-such-host.invalid", "gpu1"])
    assert [n.name for n in cluster.nodes("run", 1)] == ["gpu1"]
    with pytest.raises(ClusterError, match="2 nodes are asked for, and there are 1; no-such-host.invalid"):
        cluster.nodes("run", 2)


def test_rendezvous_may_have_a_host_of_its_own(server: Sshd, project: Path) -> None:
    cluster = connect(server, project, hosts=["other"], rendezvous="gpu1")
    node = cluster.rendezvous_node("run")
    assert node is not None
    assert node.name == "gpu1"


def test_unanswered_start_is_unreachable_and_no_plain_error(server: Sshd, project: Path) -> None:
    cluster: Cluster = connect(server, project)
    node = cluster.nodes("run", 1)[0]
    cluster.make_ready(node)
    close_links()
    server.stop()
    try:
        with pytest.raises(Unreachable, match="nothing answers at its SSH port"):
            cluster.start(node, Command("agent", (sys.executable, "-c", "pass"), {}))
    finally:
        server.start()


def test_environment_is_made_from_the_lock_once_for_all_nodes(
    server: Sshd, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(project / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "WHO = 'tiny'\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    (project / "needs.txt").write_text("tiny\n")
    (project / "constraints.txt").write_text("tiny==1.0\n")
    settings = {
        "hosts": ["gpu1"],
        "ssh_config": str(server.folder / "ssh_config"),
        "slots": 2,
        "requirements": "needs.txt",
        "install_options": ["--no-index", "--find-links", str(project)],
    }
    cluster = open_cluster(settings, project, Path("/unused"))
    nodes = cluster.nodes("environment", 2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cluster.make_ready, nodes))
    said = capsys.readouterr().err
    assert said.count(" made in ") == 1
    for node in nodes:
        script = "import sys, tiny; print(tiny.WHO, sys.prefix)"
        assert cluster.start(node, Command("agent", (node.python, "-c", script), {})).wait(240) == 0
        assert cluster.read(node, "agent.log", 0).decode().split() == ["tiny", f"{node.folder}/env"]
    made = Path(nodes[0].python).parents[1].resolve()
    elsewhere = open_cluster(settings, project / "gone", Path("/unused"))
    elsewhere.make_ready(nodes[0])
    assert "it keeps its code and environment" in capsys.readouterr().err
    assert Path(nodes[0].python).parents[1].resolve() == made


def at_home(server: Sshd) -> list[int]:
    """Return the living processes that were begun in a session of this server."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"HOME={server.home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if lives(pid)]


def command_line(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
