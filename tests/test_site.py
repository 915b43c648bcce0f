"""The documentation names all that there is. Dead links and missing pages are for `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

import killercall
from killercall._options import CHECKS

DOCS = Path(__file__).parent.parent / "docs"


def test_everything_public_is_in_the_reference() -> None:
    """Each name of `__all__` is shown, once."""
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: killercall\.(\w+)$", pages, re.MULTILINE)

    assert killercall.__all__ == sorted(shown)


def test_every_option_is_in_the_table() -> None:
    """The first column of the table of options has all there are, and no other."""
    page = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    table = page.partition("## Options")[2].partition("##")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    assert set(CHECKS) == named
