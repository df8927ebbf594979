"""The installer's pure parts: settings passed on, uv's wheel picked and checked, the stamp. No network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Iterator[None]:
    """The scripts import one another by bare name, as they do when one of them is run."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))
    for name in {"steps", "uv_binary", "installer", "locker"} - before:
        sys.modules.pop(name, None)


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def installer() -> ModuleType:
    return load("installer")


@pytest.fixture
def uv_binary() -> ModuleType:
    return load("uv_binary")


# -- pip's settings


def test_pip_config_listing_is_read_with_install_over_global(installer: ModuleType) -> None:
    listing = (
        ":env:.timeout='9'\ninstall.index-url='https://b/simple'\n"
        "global.index-url='https://a/simple'\nglobal.find-links='/w 1\\n/w2'\n"
    )
    assert installer.parse_pip_config(listing) == {"index-url": "https://b/simple", "find-links": "/w 1\n/w2"}


def test_pip_variables_win_over_pip_files(installer: ModuleType) -> None:
    options = installer.pip_options({"PIP_INDEX_URL": "https://env"}, {"index-url": "https://file", "cert": "/c.pem"})
    assert options == {"index-url": "https://env", "cert": "/c.pem"}


def test_pip_settings_reach_uv(installer: ModuleType) -> None:
    options = {"index-url": "https://i", "extra-index-url": "https://a\nhttps://b", "find-links": "/x\n/y"}
    env = installer.uv_environment({"HOME": "/h"}, options)
    assert env["UV_DEFAULT_INDEX"] == "https://i"
    assert env["UV_INDEX"] == "https://a https://b"
    assert env["UV_FIND_LINKS"] == "/x,/y"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["HOME"] == "/h"


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_uv_settings_win_over_pip_settings(installer: ModuleType, name: str) -> None:
    env = installer.uv_environment({name: "https://mine"}, {"index-url": "https://pips"})
    assert "https://pips" not in env.values()
    assert env[name] == "https://mine"


def test_own_extra_indexes_keep_uvs_safe_strategy(installer: ModuleType) -> None:
    assert "UV_INDEX_STRATEGY" not in installer.uv_environment({"UV_INDEX": "https://mine"}, {})


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('[[index]]\nurl = "https://x"\n', True),
        ('index-url = "https://x"\n', True),
        ('find-links = ["/w"]\n', True),
        ("offline = true\n", False),
    ],
)
def test_uv_toml_with_package_sources_is_left_alone(
    installer: ModuleType, tmp_path: Path, toml: str, expected: bool
) -> None:
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").write_text(toml)
    env = {"XDG_CONFIG_HOME": str(tmp_path), "UV_CONFIG_FILE": str(tmp_path / "absent")}
    assert installer.uv_has_settings(env) is expected


# -- torch


@pytest.mark.parametrize(
    ("env", "gpu", "system", "expected"),
    [
        ({}, False, "Linux", "cpu"),
        ({}, True, "Linux", "auto"),
        ({}, False, "Darwin", None),
        ({"UV_TORCH_BACKEND": "cu130"}, True, "Linux", None),
        ({"UV_FIND_LINKS": "/wheels"}, False, "Linux", None),
        ({"UV_DEFAULT_INDEX": "https://mirror"}, False, "Linux", None),
        ({"UV_INDEX": "https://more"}, True, "Linux", None),
    ],
)
def test_torch_build_follows_the_user_then_the_gpu(
    installer: ModuleType, env: dict[str, str], gpu: bool, system: str, expected: str | None
) -> None:
    assert installer.torch_backend(env, gpu, system) == expected


def test_unreachable_torch_index_falls_back_with_one_line(
    installer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert installer.reachable_backend("false", "cpu", {"PATH": "/bin:/usr/bin"}, "python") is None
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert installer.reachable_backend("true", "cpu", {"PATH": "/bin:/usr/bin"}, "python") == "cpu"


# -- uv's wheel

WHEELS = [
    "uv-1.2.3-py3-none-macosx_11_0_arm64.whl",
    "uv-1.2.3-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "uv-1.2.3-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl",
    "uv-1.2.3-py3-none-manylinux_2_28_aarch64.whl",
    "uv-1.2.3-py3-none-musllinux_1_1_x86_64.whl",
    "uv-1.2.30-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "uv-1.2.3.tar.gz",
]


@pytest.mark.parametrize(
    ("machine", "libc", "expected"),
    [
        ("x86_64", "manylinux", WHEELS[1]),
        ("aarch64", "manylinux", WHEELS[2]),
        ("aarch64", "musllinux", WHEELS[2]),
        ("x86_64", "musllinux", WHEELS[4]),
        ("arm64", "macosx", WHEELS[0]),
        ("sparc", "manylinux", None),
    ],
)
def test_the_wheel_for_this_machine_is_picked(
    uv_binary: ModuleType, machine: str, libc: str, expected: str | None
) -> None:
    found = uv_binary.pick_wheel([(f"../f/{name}", "ab") for name in WHEELS], "1.2.3", machine, libc)
    assert found == (expected and (f"../f/{expected}", "ab"))


@pytest.mark.parametrize("form", ["html", "json"])
def test_links_and_hashes_are_read_from_both_forms_of_an_index_page(uv_binary: ModuleType, form: str) -> None:
    page = {
        "html": '<html><a href="../f/uv-1.whl#sha256=ab" data-x="&gt;=3">uv</a><a href="b.whl">b</a></html>',
        "json": json.dumps(
            {"files": [{"url": "../f/uv-1.whl", "hashes": {"sha256": "ab"}}, {"url": "b.whl", "hashes": {}}]}
        ),
    }
    assert uv_binary.parse_index_page(page[form]) == [("../f/uv-1.whl", "ab"), ("b.whl", "")]


def wheel_with(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("uv/__init__.py", "")
        archive.writestr("uv-1.2.3.data/scripts/uv", content)
    return stream.getvalue()


def test_the_binary_is_unpacked_and_may_be_run(uv_binary: ModuleType, tmp_path: Path) -> None:
    wheel = wheel_with(b"#!/bin/sh\n")
    target = tmp_path / "有 空格" / "bin" / "uv"
    uv_binary.unpack_uv(wheel, hashlib.sha256(wheel).hexdigest(), target)
    assert target.read_bytes() == b"#!/bin/sh\n"
    assert target.stat().st_mode & 0o111


@pytest.mark.parametrize("sha256", ["", "00" * 32])
def test_bytes_that_the_index_does_not_vouch_for_are_refused(
    uv_binary: ModuleType, tmp_path: Path, sha256: str
) -> None:
    with pytest.raises(Exception, match="sha256 differs"):
        uv_binary.unpack_uv(wheel_with(b"evil"), sha256, tmp_path / "uv")
    assert not (tmp_path / "uv").exists()


def test_uv_is_found_in_a_later_index_when_the_first_lacks_it(uv_binary: ModuleType, tmp_path: Path) -> None:
    platforms = ["manylinux", "musllinux", "macosx"]
    tags = ".".join(f"{libc}_9_9_{platform.machine()}" for libc in platforms)
    page = tmp_path / "second" / "uv" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../f/uv-1.2.3-py3-none-{tags}.whl#sha256=ab">uv</a>')
    first, second = (tmp_path / "first").as_uri(), (tmp_path / "second").as_uri()
    link, sha256 = uv_binary.find_uv_wheel("1.2.3", {"UV_DEFAULT_INDEX": first, "UV_INDEX": f"b={second}"})
    assert (link, sha256) == (f"{tmp_path.as_uri()}/f/uv-1.2.3-py3-none-{tags}.whl", "ab")


def test_credentials_in_an_index_url_become_a_header(uv_binary: ModuleType) -> None:
    url, headers = uv_binary.authorized("https://me:p%40ss@host:8/simple/uv/")
    assert url == "https://host:8/simple/uv/"
    assert headers == {"Authorization": "Basic bWU6cEBzcw=="}
    assert uv_binary.authorized("https://host/x") == ("https://host/x", {})


@pytest.mark.parametrize(
    ("text", "expected"), [("uv 0.13.9 (x86_64)", (0, 13, 9)), ("pyenv: uv: command not found", ()), ("", ())]
)
def test_versions_compare_as_numbers(uv_binary: ModuleType, text: str, expected: tuple[int, ...]) -> None:
    assert uv_binary.parse_version(text) == expected


def test_constraints_pin_what_the_installer_and_the_build_need(uv_binary: ModuleType) -> None:
    constraints = (SCRIPTS.parent / "constraints.txt").read_text("utf-8")
    assert uv_binary.parse_version(uv_binary.pinned_uv(constraints)) >= uv_binary.UV_OLDEST
    assert "\nhatchling==" in constraints
    assert "\ntorch==2.13.0\n" in constraints
    assert "nvidia" not in constraints
    assert "://" not in constraints


# -- the stamp

names = st.sets(st.sampled_from(["train", "s3", "sky"]))
groups = st.sets(st.sampled_from(["test", "check"]))


@given(have=names, more=names, have_groups=groups, more_groups=groups)
def test_installing_more_keeps_what_was_there(
    have: set[str], more: set[str], have_groups: set[str], more_groups: set[str]
) -> None:
    stamp = load("installer").Stamp
    earlier = stamp("p", "i", tuple(have), tuple(have_groups))
    wanted = stamp("p", "i", tuple(more), tuple(more_groups))
    both = wanted.with_earlier(earlier, {"train", "s3", "sky", "test", "check"})
    assert both.covers(earlier) and both.covers(wanted)
    assert earlier.covers(wanted) == (more <= have and more_groups <= have_groups)


def test_a_changed_input_or_place_is_not_covered(installer: ModuleType) -> None:
    stamp = installer.Stamp("p", "i", ("train",), ())
    assert not stamp.covers(installer.Stamp("p", "other", ("train",), ()))
    assert not stamp.covers(installer.Stamp("other", "i", ("train",), ()))


def test_an_extra_that_no_longer_exists_is_forgotten(installer: ModuleType) -> None:
    earlier = installer.Stamp("p", "old", ("gone", "s3"), ())
    assert installer.Stamp("p", "i", ("train",), ()).with_earlier(earlier, {"s3", "train"}).extras == (
        "s3",
        "train",
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"place": 1', '{"extras": [], "groups": [], "what": 1}'])
def test_a_damaged_stamp_counts_as_none(installer: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "stamp").write_text(text)
    assert installer.read_stamp(tmp_path / "stamp") is None
    assert installer.read_stamp(tmp_path / "absent") is None


def test_the_digest_sees_where_one_file_ends(installer: ModuleType) -> None:
    assert installer.digest([b"ab", b"c"]) != installer.digest([b"a", b"bc"])


# -- the command line


def test_train_is_the_default_extra(installer: ModuleType) -> None:
    arguments = installer.parse_arguments(["--group", "test"], {"train", "s3"}, {"test"})
    assert (arguments.extras, arguments.group) == (["train"], ["test"])


@pytest.mark.parametrize("argv", [["tarin"], ["--group", "tset"]])
def test_a_wrong_name_is_answered_with_the_known_ones(
    installer: ModuleType, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        installer.parse_arguments(argv, {"train"}, {"test"})
    assert ("train" if len(argv) == 1 else "test") in capsys.readouterr().err.splitlines()[-1]


def test_a_python_that_the_package_does_not_allow_is_refused(tmp_path: Path) -> None:
    for program in ("sh", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)
    python = tmp_path / "python3"  # called as: python3 -S -c CODE
    code = "import sys; sys.version_info = (3, 11, 3); exec(sys.argv[1])"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c '{code}' \"$3\"\n")
    python.chmod(0o755)
    argv = [str(tmp_path / "sh"), str(SCRIPTS / "install")]
    done = subprocess.run(argv, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stderr
    assert "Python 3.11.4 or newer is needed" in done.stderr


def test_the_install_command_is_constrained_and_editable(installer: ModuleType) -> None:
    stamp = installer.Stamp("p", "i", ("s3", "train"), ("check", "test"), "cpu")
    command = installer.install_command("uv", "py", stamp)
    assert command[-2:] == ["--editable", ".[s3,train]"]
    assert command[command.index("--constraints") + 1] == "constraints.txt"
    assert "--torch-backend=cpu" in command
    assert [command[i + 1] for i, word in enumerate(command) if word == "--group"] == ["check", "test"]


# -- the lock


def test_the_lock_drops_cuda_and_local_versions() -> None:
    cuda = "nvidia-cublas==13 ; x\n    # via torch\n"
    compiled = f"{cuda}torch==2.13.0+cpu\n    # via timm\ntriton==3\n    # via torch\n"
    assert load("locker").tidy(compiled).splitlines()[1:] == ["torch==2.13.0", "    # via timm"]
