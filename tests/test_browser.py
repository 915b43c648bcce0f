"""The tour in JupyterLab, as a person sees it: a real browser, a real kernel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from processes import lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Where the pictures of a run go, if they are wanted.
PICTURES = os.environ.get("KILLERCALL_SCREENSHOTS")
# It asks the world for nothing.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What is typed below the tour: a map that is interrupted, and a cell after it.
STUCK = """
def stuck(number):
    with open("pids", "ab", buffering=0) as file:
        file.write(f"{__import__('os').getpid()}\\n".encode())
    time.sleep(100)
killer_pmap(stuck, range(4), cpus=2, timeout=200)
"""
AFTER = "print('alive after', killer_call(abs)(-7))"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the notebook is."""
    return tmp_path


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    """A JupyterLab of our own that has the tour open."""
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    for number, code in enumerate((STUCK, AFTER)):
        cell = {"cell_type": "code", "id": f"more-{number}", "metadata": {}, "source": code}
        notebook["cells"].append({**cell, "execution_count": None, "outputs": []})
    (home / "tour.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    # No question about news in front of it.
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    silent = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(silent))
    own = {
        **{f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    log = home / "log"
    with log.open("wb") as out:
        lab = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0",
                "--ServerApp.token=", "--ServerApp.password=", f"--ServerApp.root_dir={home}",
            ],
            env={**os.environ, **own},
            stdout=out,
            stderr=out,
        )  # fmt: skip

    def started() -> str | None:
        found = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", log.read_text())
        return found and f"http://127.0.0.1:{found[1]}/lab/tree/tour.ipynb?reset"

    try:
        yield wait_until(started, 60)
    finally:
        family = psutil.Process(lab.pid).children(recursive=True)
        lab.terminate()
        lab.wait(60)
        # The kernel was shut down with its server, and its workers with the kernel.
        _, left = psutil.wait_procs(family, timeout=30)
        for process in left:
            process.kill()
        assert [] == left


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    """The tour in a window of a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 1400})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.get_by_role("button", name="Python 3 (ipykernel) | Idle").wait_for()
        yield page
        browser.close()


def cell(page: Page, text: str) -> Locator:
    """The code cell with that text in its source."""
    return page.locator(".jp-CodeCell").filter(has_text=text).first


def picture(page: Page, name: str) -> None:
    """What the window shows now."""
    if PICTURES:
        page.screenshot(path=os.path.join(PICTURES, f"{name}.png"))


def test_the_tour_in_a_browser(page: Page, home: Path) -> None:
    """Prints, a bar, a table and a picture appear; an interrupt ends a map, and the kernel goes on."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)

    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()

    outputs = {
        "def price": "function 'price' timed out after 1s",
        "def greet": "hello Edsger, from a worker",
        "minimise()": "'x'",
        "price.options": "True True",
        "rate = 0.05": "(99.0, 95.0)",
    }
    for source, said in outputs.items():
        expect(cell(page, source).locator(".jp-OutputArea").first).to_contain_text(said)
    bar = cell(page, "def simulate").locator(".jupyter-widgets")
    expect(bar.first).to_be_visible()
    expect(cell(page, "def simulate")).to_contain_text("30/30")
    expect(cell(page, "outcomes.plot();").locator("img")).to_be_visible()
    cell(page, "def simulate").scroll_into_view_if_needed()
    picture(page, "tour-bar")
    cell(page, "outcomes.plot();").scroll_into_view_if_needed()
    picture(page, "tour-timeline")

    last = cell(page, "def stuck")
    expect(last.locator(".jp-InputPrompt")).to_have_text("[*]:")
    assert wait_until(lambda: len(lines(home / "pids")) == 2, 60)
    workers = [psutil.Process(int(line)) for line in lines(home / "pids")]
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Interrupt Kernel")).click()

    expect(last.locator(".jp-OutputArea-output").last).to_contain_text("KeyboardInterrupt")
    assert not any(worker.is_running() for worker in workers)

    cell(page, AFTER).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    expect(cell(page, AFTER).locator(".jp-OutputArea-output")).to_contain_text("alive after 7")
    picture(page, "tour-interrupted")
