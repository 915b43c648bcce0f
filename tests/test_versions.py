"""`show_versions` and `python -m killercall`."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import killercall
from killercall import _host, _versions, killer_call
from processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PATIENCE = 20

# Says what it found when it was done, and what that has brought about.
SCRIPT = """
import os, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))
import killercall
killercall.show_versions()
heavy = {"cloudpickle", "numpy", "tqdm", "pandas", "killercall._host"} & set(sys.modules)
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    print("brought about", sorted(heavy), threading.active_count(), repr(file.read()))
"""


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What is printed, by name."""
    killercall.show_versions()
    lines = capsys.readouterr().out.splitlines()
    return dict(line.strip().split("  ", 1) for line in lines if line.startswith(" "))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an interpreter."""
    env = os.environ | {"KILLERCALL_MAX_DEPTH": "7"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=60
    )


def test_it_starts_and_imports_nothing() -> None:
    """It tells of versions, limits, platform and workers, and that is all that it does."""
    *lines, brought_about = run("-c", SCRIPT).stdout.splitlines()
    found = dict(line.strip().split("  ", 1) for line in lines if line.startswith(" "))

    titles = [line for line in lines if not line.startswith(" ")]
    assert ["versions", "limits", "platform", "workers"] == titles
    assert killercall.__version__ == found["killercall"].strip()
    assert sys.version.split()[0] in found["Python"]
    assert metadata.version("cloudpickle") == found["cloudpickle"].strip()
    assert found["RLIMIT_NOFILE"].strip().startswith("300, at most 400")
    assert "'7'" == found["KILLERCALL_MAX_DEPTH"].strip()
    assert "not running" == found["forkserver"].strip()
    assert "brought about [] 1 ''" == brought_about


def test_the_module_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m killercall`; and what is no argument of it is refused."""
    done = run("-m", "killercall")
    refused = run("-m", "killercall", "--timeout")

    names = [line.split("  ")[1] for line in done.stdout.splitlines() if line.startswith(" ")]
    assert sorted({*report(capsys), "KILLERCALL_MAX_DEPTH"}) == sorted(names)
    assert (0, "") == (done.returncode, done.stderr)
    assert (2, "") == (refused.returncode, refused.stdout)
    assert "--timeout" in refused.stderr


def test_workers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of this process that wait for a call."""
    pid = killer_call(os.getpid)()
    assert wait_until(lambda: pid in _host.idle_pids(), PATIENCE)

    found = report(capsys)

    assert "running" == found["forkserver"].strip()
    assert str(pid) in found["waiting"]


def test_what_is_missing_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that the kernel does not have, one that Python does not have, no cgroups, no package."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, "not here")

    def not_found(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(platform, "freedesktop_os_release", refuse)
    monkeypatch.setattr(_versions, "_KCMP", {})
    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(metadata, "version", not_found)
    monkeypatch.setattr(_versions, "enclosing_groups", lambda _: iter([("/no/such/group", True)]))
    found = report(capsys)

    assert "no: ENOSYS" == found["pidfd"].strip()
    assert "no" == found["memfd"].strip()
    assert "not installed" == found["numpy"].strip()
    assert "none" == found["pids.max"].strip()
    assert "no: ENOSYS" == found["kcmp"].strip()
    assert platform.platform() == found["system"].strip()


def test_the_tightest_limit_on_tasks_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of all cgroups around this process."""
    for name, limit in (("outer", 90), ("inner", 80), ("endless", "max")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pids.max").write_text(f"{limit}\n", encoding="ascii")
        (tmp_path / name / "pids.current").write_text("7\n", encoding="ascii")
    groups = [(str(tmp_path / name), True) for name in ("endless", "inner", "outer")]
    monkeypatch.setattr(_versions, "enclosing_groups", lambda _: groups)
    expected = f"80, of which 7 are in use, in cgroup {tmp_path}/inner"
    assert expected == report(capsys)["pids.max"].strip()
