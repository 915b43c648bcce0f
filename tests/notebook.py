"""
Runs cells in a real notebook kernel, and prints as JSON what each of them has brought.

A process of its own, because the client leaves threads and sockets behind. Standard input is a list
of cells: `code`, and what to do when a text is seen in what a cell prints: `interrupt` it, or `make`
a file. The last of them begins work that does not end; then the kernel is killed and restarted.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

LIMIT = 60


class Notebook:
    """A kernel, and all that it has said."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # By the cell that it belongs to.
        self.said: dict[str, dict[str, Any]] = {}

    def run(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Runs a cell to its end; what it says later is added to what is returned."""
        number = self.client.execute(cell["code"])
        said = self.said[number] = {
            "stdout": "", "stderr": "", "streams": "", "data": [], "error": None
        }  # fmt: skip
        while not self._listen(number, cell, said):
            pass
        return said

    def _listen(self, number: str, cell: dict[str, Any], said: dict[str, Any]) -> bool:
        """Takes the next message; whether the cell is done."""
        message = self.client.get_iopub_msg(timeout=LIMIT)
        parent = message["parent_header"].get("msg_id")
        self.keep(message)
        if parent == number:
            if cell.get("interrupt", "\0") in said["stdout"]:
                del cell["interrupt"]
                self.manager.interrupt_kernel()
            text, path = cell.get("make", ("\0", ""))
            if text in said["stdout"]:
                Path(path).touch()
        is_idle = message["content"].get("execution_state") == "idle"
        return bool(parent == number and message["msg_type"] == "status" and is_idle)

    def keep(self, message: dict[str, Any]) -> None:
        """Adds it to its cell."""
        said = self.said.get(message["parent_header"].get("msg_id", ""))
        content = message["content"]
        if said is None:
            return
        match message["msg_type"]:
            case "stream":
                said[content["name"]] += content["text"]
                said["streams"] += content["text"]
            case "display_data":
                said["data"].append(sorted(content["data"]))
            case "error":
                said["error"] = content["ename"]

    def drain(self) -> None:
        """What came after the end of the cell."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.keep(self.client.get_iopub_msg(timeout=0.5))


def main() -> None:
    """Prints what there is in `Notebook.said`, in the order of the cells."""
    notebook = Notebook()
    try:
        *cells, last = json.load(sys.stdin)
        said = [notebook.run(cell) for cell in cells]
        notebook.drain()
        said.append(notebook.run(last))
        notebook.manager.restart_kernel(now=True)
        notebook.client.wait_for_ready(timeout=LIMIT)
        said.append(
            notebook.run({"code": "import killercall; print(killercall.killer_call(abs)(-1))"})
        )
        notebook.drain()
    finally:
        notebook.client.stop_channels()
        notebook.manager.shutdown_kernel()
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
