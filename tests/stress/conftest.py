"""The stress runs use the same helpers as the tests, and end with one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from tally import TALLY

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table."""
    table = TALLY.table()
    if table:
        terminalreporter.section("stress")
        for line in table:
            terminalreporter.write_line(line)
