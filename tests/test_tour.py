"""The tour in a real kernel, cell by cell, without a browser."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"
RUN = "from nbclient.cli import main; main()"


def test_the_tour(tmp_path: Path) -> None:
    """No cell raises, and each says what it should."""
    output = tmp_path / "tour.ipynb"
    command = [sys.executable, "-c", RUN, f"--output={output.with_suffix('')}", TOUR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert 0 == done.returncode, done.stderr

    cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
    said = {"".join(cell["source"]): cell["outputs"] for cell in cells if "outputs" in cell}
    expected = {
        "def price": "function 'price' timed out after 1s",
        "def greet": "hello Ada, from a worker\nhello Grace, from a worker\n",
        "outcomes.values()[:10]": "[0, 1, 4, 9, 16, 25, 36, None, 64, 81]",
        "outcomes.plot();": "image/png",
        "minimise()": "'x'",
        "price.options": "True True",
        "await price.aio": "100.1",
        "rate = 0.05": "(99.0, 95.0)",
    }
    for source, text in expected.items():
        (outputs,) = [outputs for cell, outputs in said.items() if source in cell]
        assert text in _text(outputs), source


def _text(outputs: list[dict[str, object]]) -> str:
    """All that a cell shows, and of what kind it is."""
    found = []
    for output in outputs:
        data = output.get("data", {})
        assert isinstance(data, dict)
        for part in (output.get("text", ""), *data, *data.values()):
            found.append("".join(part) if isinstance(part, (list, str)) else str(part))
    return "\n".join(found)
