"""
Every example in docstrings, README and docs runs, and prints what it says.

A block that begins with `py` instead of `python` is not run, and the page says why.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import killercall
from killercall._options import CHECKS, Options
from processes import run_script

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```python(?: title=\S+)?\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
MODULES = [module.name for module in pkgutil.iter_modules(killercall.__path__, "killercall.")]


@pytest.fixture(scope="module", autouse=True)
def _threads_of_libraries() -> None:
    """They start some that stay, which no example has left."""
    __import__("pandas")


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    """The examples in the docstrings of a module."""
    # A docstring of a decorated function would be looked for in the wrong module otherwise.
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    for public in vars(module).values():
        # Exceptions say that they are the package's, so they are not found in their module.
        moved = isinstance(public, type) and public.__module__ == "killercall"
        if moved and killercall._HOMES[public.__name__] == name.removeprefix("killercall."):
            failed += run_examples(public, vars(module))

    assert 0 == failed


def run_examples(public: type, names: dict[str, object]) -> int:
    """How many examples of a class fail; it has some."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = doctest.DocTestFinder(exclude_empty=True).find(
        public, public.__name__, module=False, globs=dict(names)
    )
    for examples in found:
        runner.run(examples)
    assert runner.tries
    return runner.failures


PUBLIC = [name for name in killercall.__all__ if callable(getattr(killercall, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_all_that_is_public_has_an_example(name: str) -> None:
    """Its docstring does; and each of its public methods has a docstring, at least."""
    public = getattr(killercall, name)
    assert ">>>" in (inspect.getdoc(public) or "")

    methods = inspect.getmembers(public, inspect.isfunction) if isinstance(public, type) else []
    silent = [name for name, method in methods if name[0] != "_" and not inspect.getdoc(method)]
    assert [] == silent


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_each_option_has_an_example(name: str) -> None:
    """What it means, and how it is used, is told where all options are."""
    told = inspect.getdoc(Options) or ""
    meanings, examples = told.split("Example:")

    assert re.search(rf"^    {name}: ", meanings, re.MULTILINE)
    assert re.search(rf"(>>>|\.\.\.).*\b{name}=", examples)


def blocks() -> list[object]:
    """Each Python block of each page, with what it is said to print."""
    return [
        pytest.param(code, said, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, (code, said) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    ]


# Numbers that differ from run to run.
VARIABLE = re.compile(r"pid \d+|0x[0-9a-f]+|File \"[^\"]*\"")


@pytest.mark.parametrize(("code", "said"), blocks())
def test_page(code: str, said: str, tmp_path: Path) -> None:
    """A block runs as a script of its own."""
    # What joblib leaves there is not left anywhere else.
    own = {"JOBLIB_TEMP_FOLDER": str(tmp_path)}
    done = run_script(code, way="file", directory=tmp_path, environment=own)
    printed = VARIABLE.sub("X", done.stdout + done.stderr)

    missing = [line for line in VARIABLE.sub("X", said).splitlines() if line not in printed]
    assert [] == missing
    assert (done.returncode == 0) or "Error" in said
