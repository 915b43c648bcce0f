"""A module that was reloaded in the host is not run as it was before by any worker."""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from killercall import KillerPool, killer_actor, killer_call, killer_pmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CODE = """
import reloaded_helper
def version():
    return {version!r}
def helped():
    return reloaded_helper.version()
"""


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Any]]:
    """Gives a module another text, and reloads it."""
    monkeypatch.syspath_prepend(tmp_path)

    # Texts of different lengths, as compiled ones are known by length and second.
    def write(name: str, version: str) -> Any:
        code = CODE if name == "reloaded" else CODE.replace("import reloaded_helper", "")
        (tmp_path / f"{name}.py").write_text(code.format(version=version))
        loaded = sys.modules.get(name)
        return importlib.import_module(name) if loaded is None else importlib.reload(loaded)

    write("reloaded_helper", "helper 1")
    write("reloaded", "1")
    yield write
    del sys.modules["reloaded"], sys.modules["reloaded_helper"]


def test_reload(edit: Callable[[str, str], Any]) -> None:
    """Functions of it, and those that use it, directly or not, warm ones too."""
    module = sys.modules["reloaded"]
    uses = killer_call(lambda: (module.version(), module.helped()))
    mapped = killer_pmap(lambda _: module.version(), [0, 0])
    assert (("1", "helper 1"), ["1", "1"]) == (uses(), mapped)
    pid = killer_call(os.getpid)()
    assert pid == killer_call(os.getpid)()

    edit("reloaded", "two")
    assert ("two", "helper 1") == uses()
    assert ("two", ["two", "two"]) == (
        killer_call(module.version)(),
        killer_pmap(lambda _: module.version(), [0, 0]),
    )
    assert pid != killer_call(os.getpid)()

    edit("reloaded_helper", "helper two")
    assert "helper two" == killer_call(module.helped)()


def test_preloaded(edit: Callable[[str, str], Any]) -> None:
    """What the forkserver has imported is no older."""
    module = sys.modules["reloaded"]
    call = killer_call(module.version, preload="reloaded")
    assert "1" == call()
    edit("reloaded", "two")
    assert "two" == killer_call(module.version, preload="reloaded")()


def test_pool_and_actor(edit: Callable[[str, str], Any]) -> None:
    """A pool gets new workers; what lives in a worker stays."""

    @killer_actor
    class Keeper:
        def __init__(self) -> None:
            self.kept = 0

        def keep(self) -> int:
            self.kept += 1
            return self.kept

    module, keeper = sys.modules["reloaded"], Keeper()
    keeper.keep()
    with KillerPool(1) as pool:
        assert "1" == pool.submit(module.version).result()
        edit("reloaded", "two")
        assert "two" == pool.submit(module.version).result()
    assert 2 == keeper.keep()
    keeper.close()


def test_autoreload(edit: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reloads it may change in place, so it is told by the time of the file, once a cell."""
    shell = types.SimpleNamespace(execution_count=1)
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    for name in ("IPython", "IPython.extensions.autoreload"):
        monkeypatch.setitem(sys.modules, name, ipython)
    module = sys.modules["reloaded"]
    file, get_pid = module.__file__, killer_call(os.getpid)
    pid = get_pid()
    assert pid == get_pid()

    os.utime(file, (1, 1))
    assert pid == get_pid()
    shell.execution_count = 2
    assert pid != (second := get_pid())
    shell.execution_count = 3
    assert second == get_pid()
    os.unlink(file)
    shell.execution_count = 4
    assert second == get_pid()


def test_part_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from package import part` finds the new part in a new worker, which has the package from before."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "__init__.py").write_text("")
    (tmp_path / "bundle" / "part.py").write_text("version = 1")
    monkeypatch.syspath_prepend(tmp_path)
    from bundle import part

    def version() -> int:
        from bundle import part as found

        return found.version

    assert 1 == killer_call(version, preload="bundle.part")()
    (tmp_path / "bundle" / "part.py").write_text("version = 'two'")
    importlib.reload(part)
    assert "two" == killer_call(version, preload="bundle.part")()
    del sys.modules["bundle"], sys.modules["bundle.part"]
