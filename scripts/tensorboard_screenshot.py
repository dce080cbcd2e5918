"""Screenshots of TensorBoard in headless Chromium, as in docs/inspecting.md.

    python scripts/tensorboard_screenshot.py runs/digits page.png --tab custom_scalars

Needs Chromium, its driver (Debian: chromium, chromium-driver) and selenium.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
TABS = ("scalars", "custom_scalars", "images", "hparams", "histograms")
# All shadow trees of the page, to find in them what a person sees: TensorBoard draws in nested custom elements.
DEEP = """
const found = [];
const walk = node => {
  for (const child of node.querySelectorAll('*')) {
    if (child.matches(arguments[0])) found.push(child);
    if (child.shadowRoot) walk(child.shadowRoot);
  }
};
walk(document);
"""


@contextmanager
def server(logdir: Path) -> Iterator[str]:
    """A TensorBoard server on a free port of this machine; gives its address, and stops it in the end."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, "--load_fast=false", "--reload_interval", "1"], stdout=output, stderr=output
        )
        try:
            yield _address(process, output)
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen, output: Any, patience: float = 60) -> str:
    end = time.monotonic() + patience
    said = ""
    while time.monotonic() < end and process.poll() is None:
        output.seek(0)
        said = output.read()
        if found := re.search(r"http://[\w.:]+", said):
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"TensorBoard did not start: {said}")


def get(address: str, path: str) -> Any:
    """What the server's HTTP API answers, as JSON."""
    with urllib.request.urlopen(f"{address}/data/{path}", timeout=30) as answer:
        return json.load(answer)


@contextmanager
def browser(width: int, height: int) -> Iterator[Any]:
    """A headless Chromium, driven by selenium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    for flag in (*flags, "disable-component-update", "disable-sync", f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def drawn(driver: Any, selector: str = "path.line") -> int:
    """How much the page shows of something, such as the lines of its curves."""
    return driver.execute_script(
        DEEP + "return found.filter(e => e.getBoundingClientRect().width > 1).length", selector
    )


def open_tab(driver: Any, address: str, tab: str, query: str = "", patience: float = 60) -> None:
    """Opens a tab and waits until nothing more is drawn."""
    driver.get(f"{address}/#{tab}" + (f"&{query}" if query else ""))
    end = time.monotonic() + patience
    before, same = -1, 0
    while time.monotonic() < end and same < 4:
        time.sleep(0.5)
        now = drawn(driver, "path.line, path.domain, img")
        same = same + 1 if now == before and now > 0 else 0
        before = now


def main(arguments: Sequence[str] | None = None) -> None:
    """Takes the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", type=Path, help="folder of the runs")
    parser.add_argument("file", type=Path, metavar="FILE.png", help="file to write")
    parser.add_argument("--tab", choices=TABS, default="scalars", help="tab to open (default: scalars)")
    parser.add_argument(
        "--query", default="", help="settings in the address, such as 'tagFilter=inner&_smoothingWeight=0'"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(1400, 900), metavar=("W", "H"), help="size in pixels")
    options = parser.parse_args(arguments)
    with server(options.logdir) as address, browser(*options.size) as driver:
        open_tab(driver, address, options.tab, options.query)
        print(f"{drawn(driver)} curves")
        driver.save_screenshot(str(options.file))


if __name__ == "__main__":
    main()
