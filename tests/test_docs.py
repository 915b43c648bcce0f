"""
Every example in docstrings, README and docs runs, and prints what it says.

A block that begins with `py` instead of `python` is not run, and the page says why.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import killercall
from processes import run_script

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```python(?: title=\S+)?\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
MODULES = [module.name for module in pkgutil.iter_modules(killercall.__path__, "killercall.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    """The examples in the docstrings of a module."""
    # A docstring of a decorated function would be looked for in the wrong module otherwise.
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)

    assert 0 == failed


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
    done = run_script(code, way="file", directory=tmp_path)
    printed = VARIABLE.sub("X", done.stdout + done.stderr)

    missing = [line for line in VARIABLE.sub("X", said).splitlines() if line not in printed]
    assert [] == missing
    assert (done.returncode == 0) or "Error" in said
