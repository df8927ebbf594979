"""What the SSH backend is made of, without a host."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import ClusterError, Hardware, _host, _host_files, _ssh_code, equal_share
from cluster._machine import free_port, interface_addresses, interface_of, port_in_use
from cluster._ssh_client import Target, bootstrap, explain, parse_config, ssh_argv
from cluster._ssh_environment import environment, own_requirements, wanted
from cluster._ssh_link import program
from cluster._ssh_settings import parse_settings
from cluster.ssh import node_name
from fgtrain.listener import listen_at
from tests.testbed.addresses import BOTH
from tests.testbed.ports import told_apart

HOST = Target("gpu1")


def test_users_options_come_before_ours_and_the_host_after_all() -> None:
    argv = ssh_argv(Target("gpu1", "me", 2222, "/etc/c", ("ConnectTimeout=3",)), "true")
    assert argv.index("ConnectTimeout=3") < argv.index("ConnectTimeout=10"), "ssh takes the first value it is given"
    assert "BatchMode=yes" in argv
    assert argv[-9:] == ["-F", "/etc/c", "-p", "2222", "-l", "me", "--", "gpu1", "true"]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_program_begins_in_a_login_shell(shell: str) -> None:
    source = program()
    asked = json.dumps({"id": 1, "do": "hello", "body": 0}).encode() + b"\n"
    argv = [shell, "-c", bootstrap(sys.executable, len(source))]
    done = subprocess.run(argv, input=source + asked, capture_output=True, check=True, timeout=240)
    assert done.stdout.startswith(_host.READY)
    assert json.loads(done.stdout.splitlines()[-1])["value"]["cores"] >= 1


def test_nodes_own_side_is_python_that_older_hosts_have() -> None:
    """By the grammar; that it runs there is seen where such an interpreter is at hand."""
    import ast

    for module in ("_machine", "_marks", "_host", "_host_files", "_host_processes", "_host_prune"):
        source = (Path(_host.__file__).parent / f"{module}.py").read_text()
        ast.parse(source, feature_version=(3, 8))
        assert "from __future__ import annotations" in source


def test_interpreter_that_a_shell_would_take_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="not a plain path"):
        bootstrap("python3; rm", 1)


@pytest.mark.parametrize(
    ("said", "meaning", "passing"),
    [
        ("gpu1: Permission denied (publickey).", "it takes none of your keys: `ssh-copy-id gpu1`", False),
        ("Host key verification failed.", "its host key is not known here: log in once by hand (`ssh gpu1`)", False),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "has changed", False),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "there is no host of this name", False),
        ("ssh: connect to host gpu1 port 22: Connection refused", "nothing answers at its SSH port", True),
        ("ssh: connect to host gpu1 port 22: Connection timed out", "does not answer (Connection timed out)", True),
        ("ssh: connect to host gpu1 port 22: No route to host", "it does not answer (No route to host)", True),
        ("bash: line 1: exec: python3: not found", "python3 is not there", False),
        ("zsh:1: command not found: python3", "python3 is not there", False),
        ("bash: line 1: /opt/x/bin/python: No such file or directory", "python3 is not there", False),
        ("zsh:1: no such file or directory: /opt/python3", "python3 is not there", False),
        ("cp: /etc/motd: No such file or directory", "cp: /etc/motd: No such file or directory", True),
        (
            "Can't open user config file /home/python/c: No such file or directory",
            "ssh_config of clusters.toml is /home/python/c, which cannot be read: No such file or directory",
            False,
        ),
        (
            "/bin/bash: line 1: exec: gate.py: not found\n"
            "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535",
            "its ProxyCommand cannot be run: /bin/bash: line 1: exec: gate.py: not found",
            False,
        ),
        (
            "Warning: Identity file /python/key not accessible: No such file or directory.\r\n"
            "gpu1: Permission denied (publickey).",
            "the key file /python/key cannot be read (No such file or directory), and it takes no other key",
            False,
        ),
        (
            "Warning: Identity file /python/key not accessible: No such file or directory.\nsomething new",
            "gpu1: something new",
            True,
        ),
        ("command-line: line 0: Bad configuration option: x", "Bad configuration option: x", False),
        ("Connection closed by UNKNOWN port 65535", "Connection closed by UNKNOWN port 65535", True),
        ("something new\n", "gpu1: something new", True),
        ("", "gpu1: the connection broke", True),
    ],
)
def test_complaints_of_ssh_become_one_line_that_says_what_to_do(said: str, meaning: str, passing: bool) -> None:
    complaint = explain(HOST, said)
    assert meaning in complaint.text
    assert "\n" not in complaint.text
    assert complaint.text.startswith("gpu1: ")
    assert complaint.passing is passing


def test_interpreter_of_another_name_that_is_not_there_is_named() -> None:
    said = "bash: line 1: /home/me/py/bin/interpreter: No such file or directory"
    assert "~/py/bin/interpreter is not there" in explain(Target("gpu1", python="~/py/bin/interpreter"), said).text
    assert "is not there" not in explain(HOST, said).text


def test_configuration_as_ssh_prints_it_is_read() -> None:
    assert parse_config("user me\nhostname 10.0.0.1\nidentityfile a\nidentityfile b\n") == {
        "user": "me",
        "hostname": "10.0.0.1",
        "identityfile": "a",
    }


@given(st.integers(1, 256), st.integers(0, 16), st.integers(1, 16))
def test_nodes_of_one_machine_share_it_without_overlap(cores: int, gpus: int, sharers: int) -> None:
    machine = Hardware(cores, tuple(map(str, range(gpus))))
    shares = [equal_share(machine, i, sharers) for i in range(sharers)]
    given_out = [gpu for share in shares for gpu in share.gpus]
    assert len(given_out) == len(set(given_out)) == gpus // sharers * sharers
    assert {share.cores for share in shares} == {max(1, cores // sharers)}


def test_interface_is_the_one_that_has_the_address() -> None:
    interfaces = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5", "fe80::1"]}
    assert interface_of("10.0.0.5", interfaces) == "eth0"
    assert interface_of("fe80::1", interfaces) == "eth0"
    assert interface_of("203.0.113.9", interfaces) is None, "a NAT's address is none of ours"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_loopback_is_found_on_this_machine() -> None:
    assert interface_of("127.0.0.1", interface_addresses()) == "lo"


def test_what_a_run_keeps_is_not_old(tmp_path: Path) -> None:
    (tmp_path / "env").symlink_to(tmp_path / "made")
    assert not _host_files.keep(str(tmp_path), "env"), "it leads to nothing"
    (tmp_path / "made").mkdir()
    os.utime(tmp_path / "env", (0, 0), follow_symlinks=False)
    assert _host_files.keep(str(tmp_path), "env")
    assert (tmp_path / "env").lstat().st_mtime > 0
    assert not _host_files.keep(str(tmp_path), "project")


@pytest.mark.parametrize("address", [*BOTH, "localhost"])
def test_ports_are_told_at_either_kind_of_address_and_at_a_name(address: str) -> None:
    assert told_apart(lambda: free_port(address), partial(port_in_use, address), partial(listen_at, address))


def test_nodes_are_called_after_their_hosts() -> None:
    assert node_name("me@gpu1", 0, 1) == "gpu1"
    assert [node_name("10.0.0.1", i, 2) for i in range(2)] == ["10.0.0.1-0", "10.0.0.1-1"]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({}, "an ssh cluster needs hosts, for example"),
        ({"hosts": ["a"], "host": "b"}, "ssh has no setting 'host'; there are: hosts, user"),
        ({"hosts": "a"}, "hosts is 'a', and should be a list of strings"),
        ({"hosts": ["a", 1]}, "hosts is .* should be a list of strings"),
        ({"hosts": ["a"], "slots": True}, "slots is True, and should be a whole number"),
        ({"hosts": ["a"], "slots": 0}, "slots is 0"),
        ({"hosts": ["a"], "port": 70000}, "port is 70000"),
        ({"hosts": ["a"], "keep": -1}, "keep is -1"),
        ({"hosts": ["a"], "extras": ["sky"]}, "extras has sky, and there are: deepspeed; for other packages"),
        ({"hosts": ["-oProxyCommand=x"]}, "'-oProxyCommand=x' is no host"),
        ({"hosts": ["a", "a"]}, "named twice"),
        ({"hosts": ["a"], "python": "py thon"}, "a path without spaces"),
        ({"hosts": ["a"], "work": "runs"}, r"work is 'runs': a path on the hosts is needed, from / or ~/ on"),
        ({"hosts": ["a"], "work": ""}, "work is ''"),
        ({"hosts": ["a"], "work": "$SCRATCH/fg"}, "work is .*SCRATCH/fg"),
        ({"hosts": ["a"], "cache": "/data/$USER"}, "cache is"),
        ({"hosts": ["a"], "cache": "~other/x"}, "cache is"),
        ({"hosts": ["a"], "project": "./birds"}, "project is './birds'"),
        ({"hosts": ["a"], "env": {"A": 1}}, "env is .* a table of strings"),
    ],
)
def test_wrong_settings_are_named(raw: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ClusterError, match=complaint):
        parse_settings(raw)


def test_paths_on_hosts_begin_at_the_root_or_at_home() -> None:
    found = parse_settings({"hosts": ["a"], "work": "~/x", "cache": "/data/x y", "project": "~"})
    assert (found.work, found.cache, found.project) == ("~/x", "/data/x y", "~")


def test_credentials_travel_and_what_is_about_this_machine_does_not() -> None:
    here = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_CONFIG_FILE": "/home/me/.aws",
        "FGLAUNCH_STORE": "store",
        "FGLAUNCH_X": "1",
        "HOME": "/home/me",
        "WANDB_API_KEY": "w",
    }
    settings = parse_settings({"hosts": ["a"], "env": {"FGLAUNCH_X": "2"}})
    assert settings.passed(here) == {"AWS_SECRET_ACCESS_KEY": "s", "FGLAUNCH_X": "2"}
    asked = parse_settings({"hosts": ["a"], "pass_env": ["WANDB_*", "AWS_CONFIG_FILE"]}).passed(here)
    assert asked.keys() == {"AWS_SECRET_ACCESS_KEY", "FGLAUNCH_X", "WANDB_API_KEY", "AWS_CONFIG_FILE"}


# -- code -----------------------------------------------------------------------------------------------------------


def test_what_git_tracks_or_does_not_ignore_is_code(tmp_path: Path) -> None:
    def git(*words: str, at: Path = tmp_path) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", "-C", str(at), *identity, *words], check=True, capture_output=True)

    files = ["kept.py", "gone.py", "new.py", "junk.log", "data/big", "store/runs/x", "文/图.py", "inner/module.py"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("*.log\n")
    git("init", "-q")
    git("init", "-q", at=tmp_path / "inner")
    git("add", "kept.py", "gone.py")
    (tmp_path / "gone.py").unlink()
    tree = _ssh_code.take_tree(tmp_path, _ssh_code.project_files(tmp_path))
    assert sorted(tree.files) == [".gitignore", "inner/module.py", "kept.py", "new.py", "文/图.py"]
    git("add", "-f", "data/big")
    assert "data/big" in _ssh_code.project_files(tmp_path), "whoever tracks it means it"


def test_without_git_all_but_data_and_environments_is_code(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.py", ".venv/x", "data/y", "sub/data/z.py", "store/s", "__pycache__/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    assert _ssh_code.project_files(tmp_path) == ["a.py", "sub/b.py", "sub/data/z.py"]


def test_own_package_is_sent_whole() -> None:
    """It has a package `data`, which in a project would be the user's pictures."""
    root = Path(_host.__file__).parents[1]
    own = {str(f.relative_to(root)) for f in (root / "fgtrain").rglob("*.py")}
    assert own <= set(_ssh_code.package_files(root, "fgtrain"))


def test_too_much_to_send_names_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p").write_bytes(bytes(3 << 20))
    with pytest.raises(ClusterError, match=r"has 3 MiB to send to the hosts, 3 MiB of it in pictures \(limit 1 MiB\)"):
        _ssh_code.take_tree(tmp_path, ["a.py", "pictures/p"], limit_bytes=1 << 20)


@given(st.dictionaries(st.sampled_from(["a", "b/c", "b/d", "e"]), st.binary(max_size=20), min_size=1))
def test_tree_arrives_as_it_was_taken(contents: dict[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        for name, data in contents.items():
            (Path(here) / name).parent.mkdir(exist_ok=True)
            (Path(here) / name).write_bytes(data)
        tree = _ssh_code.take_tree(Path(here), contents)
        wanted_ = _host_files.missing(there, tree.digest, tree.files)
        assert len(wanted_) == len(set(contents.values()))
        _host_files.assemble(there, tree.digest, tree.files, wanted_, _ssh_code.pack(tree, wanted_))
        assert _host_files.missing(there, tree.digest, tree.files) == []
        copy = Path(there) / "code" / tree.digest
        assert {str(f.relative_to(copy)): f.read_bytes() for f in copy.rglob("*") if f.is_file()} == contents
        assert _ssh_code.take_tree(copy, contents).digest == tree.digest


# -- environments ---------------------------------------------------------------------------------------------------


def test_environment_is_named_by_what_decides_its_contents() -> None:
    base = environment("torch\n", "torch==2.6\n", ())
    assert environment("torch  # a comment\n\n", "torch==2.6\n", ()).key == base.key
    others = [environment("torch\n", "torch==2.7\n", ()), environment("torch\n", "torch==2.6\n", ("--pre",))]
    assert len({base.key, *(e.key for e in others)}) == 3


def test_nodes_need_our_requirements_and_those_of_training() -> None:
    declared = [
        "msgspec>=0.19",
        "torch>=2.6; extra == 'train'",
        "s3fs; extra == 's3'",
        "tomli; python_version < '3.11'",
    ]
    ours = ["msgspec>=0.19", "tomli; python_version < '3.11'"]
    assert own_requirements(declared, ["train"]) == [*ours, "torch>=2.6"]
    assert own_requirements(declared, ["train", "s3"]) == ["msgspec>=0.19", "s3fs", ours[1], "torch>=2.6"]


def test_environment_with_deepspeed_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("torch==2.6\n")
    plain, more = (wanted(tmp_path, tmp_path, "", "", (), extras) for extras in (("train",), ("train", "deepspeed")))
    assert plain == wanted(tmp_path, tmp_path, "", "", ())
    assert "deepspeed" not in plain.requirements
    assert "deepspeed" in more.requirements
    assert plain.key != more.key


@pytest.mark.parametrize("own", [{"python": "/bin/python3"}, {"requirements": "needs.txt"}, {"shared": True}])
def test_what_the_user_provides_is_not_judged(own: dict[str, Any]) -> None:
    assert parse_settings({"hosts": ["a"], "extras": ["deepspeed"]}).furnished == ("train", "deepspeed")
    assert parse_settings({"hosts": ["a"], **own}).furnished is None


def test_lock_file_of_the_project_counts_and_the_users_more(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("torch==2.6\n")
    (tmp_path / "mine.txt").write_text("torch==2.7\n")
    assert wanted(tmp_path, tmp_path, "", "", ()).constraints == "torch==2.6\n"
    assert wanted(tmp_path, tmp_path, "", "mine.txt", ()).constraints == "torch==2.7\n"
    with pytest.raises(ClusterError, match="absent.txt: No such file .*; see requirements"):
        wanted(tmp_path, tmp_path, "absent.txt", "", ())


def test_without_a_lock_file_what_is_installed_here_counts(tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_text("msgspec\nno-such-package\n")
    pins = wanted(tmp_path, tmp_path, "needs.txt", "", ()).constraints
    assert pins.startswith("msgspec==")
    assert "no-such-package" not in pins


def test_uv_makes_the_environment_where_it_is_there() -> None:
    files = [Path("/r"), Path("/c")]
    venv, install = _host_files.environment_commands("/e", files, ["--pre"], "/bin/uv", "/bin/python3.12")
    assert venv == ["/bin/uv", "venv", "--quiet", "--python", "/bin/python3.12", "/e"]
    assert shlex.join(install) == "/bin/uv pip install --python /e/bin/python -r /r -c /c --pre"
    assert _host_files.environment_commands("/e", files, [], "/bin/uv", None)[0][-2:] == ["3.11", "/e"]
    venv, install = _host_files.environment_commands("/e", files, [], None, "/bin/python3.12")
    assert venv == ["/bin/python3.12", "-m", "venv", "/e"]
    with pytest.raises(_host_files.HostError, match=r"no Python 3.11 or newer and no uv"):
        _host_files.environment_commands("/e", files, [], None, None)


def test_environment_is_made_once_and_one_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "uv").write_text('#!/bin/sh\nif [ "$1" = venv ]; then mkdir -p "$5/bin"; fi\necho "$@" >> "$CALLS"\n')
    (bin_ / "uv").chmod(0o755)
    cache, calls = tmp_path / "cache", tmp_path / "calls"
    env = {"CALLS": str(calls)}
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{bin_}:{before}"
    try:
        for _ in range(2):
            _host_files.make_environment(str(cache), "k", "torch", "torch==2.6", [], env)
        assert len(calls.read_text().splitlines()) == 2
        (cache / "envs" / "k" / ".complete").unlink()
        (cache / "envs" / "k" / "half").touch()
        _host_files.make_environment(str(cache), "k", "torch", "torch==2.6", [], env)
        assert not (cache / "envs" / "k" / "half").exists()
        (bin_ / "uv").write_text("#!/bin/sh\necho no such package: torhc\nexit 1\n")
        with pytest.raises(_host_files.HostError, match="uv venv failed .*no such package: torhc"):
            _host_files.make_environment(str(cache), "other", "torhc", "", [], env)
        assert not (cache / "envs" / "other" / ".complete").exists()
    finally:
        os.environ["PATH"] = before


# -- requests -------------------------------------------------------------------------------------------------------


def serve(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    sent = b"".join(json.dumps({"id": i, **r}).encode() + b"\n" for i, r in enumerate(requests))
    sink = io.BytesIO()
    _host.serve(io.BytesIO(sent), sink)
    out = io.BytesIO(sink.getvalue().removeprefix(_host.READY))
    answers = []
    while line := out.readline():
        answer = json.loads(line)
        answers.append(answer | {"data": out.read(answer["body"])})
    return answers


def test_files_come_in_pieces_and_the_users_errors_as_one_line(tmp_path: Path) -> None:
    big = bytes(range(256)) * 2000
    (tmp_path / "f").write_bytes(big)
    read = {"do": "read", "path": str(tmp_path / "f"), "offset": 0}
    first, second, absent, refused = serve(
        read,
        read | {"offset": _host.READ_LIMIT},
        read | {"path": str(tmp_path / "g")},
        {"do": "make_folder", "folder": str(tmp_path / "f" / "x")},
    )
    assert first["data"] + second["data"] == big
    assert absent["data"] == b""
    assert refused["kind"] == "user"
    assert "Not a directory" in refused["error"]
