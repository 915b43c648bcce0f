"""
Runs standard input as one cell of a real notebook kernel, and prints what the cell prints.

A process of its own, because the client leaves threads and sockets behind.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from jupyter_client.manager import start_new_kernel


def main() -> int:
    """Exit code 1 if the cell raised; its traceback goes to standard error."""
    manager, client = start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL)

    def output(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            stream = sys.stdout if message["content"]["name"] == "stdout" else sys.stderr
            stream.write(message["content"]["text"])

    try:
        reply = client.execute_interactive(sys.stdin.read(), timeout=90, output_hook=output)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    print("\n".join(reply["content"].get("traceback", [])), end="", file=sys.stderr)
    return int(reply["content"]["status"] != "ok")


if __name__ == "__main__":
    sys.exit(main())
