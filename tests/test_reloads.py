"""A module that was reloaded in the host is not run as it was before by any worker."""

from __future__ import annotations

import importlib
import os
import sys
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
