"""
Interrupts a real notebook kernel in a call and in a map, and prints how each cell ended.

A process of its own, because the client leaves threads and sockets behind.
"""

from __future__ import annotations

import subprocess
import threading
from typing import Any

from jupyter_client.manager import start_new_kernel

CELLS = {
    "killer_call(begin, timeout=None)(path)",
    "killer_pmap(begin, [path] * 3, cpus=3, timeout=None)",
}
DEFINITIONS = """
import os, tempfile, time
from killercall import killer_call, killer_pmap
path = os.path.join(tempfile.mkdtemp(), "begun")
def begin(path):
    open(path, "a").close()
    time.sleep(600)
def announce():
    while not os.path.exists(path):
        time.sleep(0.01)
    print("begun", flush=True)
"""
RUN = """
import threading
thread = threading.Thread(target=announce)
thread.start()
try:
    {cell}
finally:
    thread.join()
    os.unlink(path)
"""


def main() -> None:
    """Prints the exception's name and what the next cell says, for each."""
    manager, client = start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL)
    try:
        client.execute_interactive(DEFINITIONS, timeout=60)
        for cell in sorted(CELLS):

            def interrupt(message: dict[str, Any]) -> None:
                if message["msg_type"] == "stream" and "begun" in message["content"]["text"]:
                    # From a thread: the client waits for this to return.
                    threading.Thread(target=manager.interrupt_kernel).start()

            code = RUN.format(cell=cell)
            reply = client.execute_interactive(code, timeout=60, output_hook=interrupt)
            said: list[str] = []

            def listen(message: dict[str, Any], said: list[str] = said) -> None:
                if message["msg_type"] == "stream":
                    said.append(message["content"]["text"].strip())

            client.execute_interactive(
                "print(killer_call(abs)(-1))", timeout=60, output_hook=listen
            )
            print(reply["content"].get("ename"), *said)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


if __name__ == "__main__":
    main()
