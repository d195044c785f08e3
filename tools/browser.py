"""The browser of the tests: find one, or install one.

Order: the ``CHROME`` variable, a Chromium or Chrome on the path, the build that Playwright downloads, Debian's
``chromium``. Run as ``python -m tools.browser``, it prints the browser that the tests will use.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
ADVICE = (
    "No Chromium was found, and none could be installed. Install one (Debian, Ubuntu: `apt-get install chromium`), "
    "or name one: `CHROME=/path/to/chrome make test`."
)
#: Switches that keep a headless browser quiet: no sandbox needed in a container, no background connections.
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)


class BrowserNotFoundError(RuntimeError):
    """No browser for the tests; the message says how to get one."""


def on_this_machine() -> Path | None:
    """Return the browser named by ``CHROME`` or found on the path.

    Raises
    ------
    BrowserNotFoundError
        If ``CHROME`` is set to something that is not there: a wrong setting is never passed over in silence.
    """
    named = os.environ.get("CHROME")
    if named:
        found = shutil.which(named)
        if found is None:
            raise BrowserNotFoundError(f"CHROME is set to {named!r}, which is not a program. Correct it or unset it.")
        return Path(found)
    for name in (*NAMES, MAC):
        found = shutil.which(name)
        if found:
            return Path(found)
    return None


def of_playwright() -> Path | None:
    """Return the browser that Playwright downloaded earlier, if it did."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return path if path.exists() else None


def find_browser() -> Path:
    """Return a browser's path, without installing anything.

    Raises
    ------
    BrowserNotFoundError
        If there is none. The browser tests then fail with this advice; they are never skipped.
    """
    found = on_this_machine() or of_playwright()
    if found is None:
        raise BrowserNotFoundError(ADVICE)
    return found


def _succeeds(*command: str) -> bool:
    print("  " + " ".join(command), flush=True)
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0


def install_browser() -> Path:
    """Return a browser, installing Playwright's own or Debian's if the machine has none."""
    try:
        return find_browser()
    except BrowserNotFoundError:
        if os.environ.get("CHROME"):
            raise
    print("no Chromium on this machine: installing one for the tests", flush=True)
    _succeeds(sys.executable, "-m", "playwright", "install", "chromium")
    if of_playwright() is None and shutil.which("apt-get"):
        sudo = () if os.geteuid() == 0 else ("sudo", "--non-interactive")
        if _succeeds(*sudo, "apt-get", "update"):
            _succeeds(*sudo, "apt-get", "install", "--yes", "chromium")
    return find_browser()


def main() -> int:
    """Print the browser's path, or the advice."""
    try:
        print(f"browser for the tests: {install_browser()}")
    except BrowserNotFoundError as error:
        # The book itself needs no browser: say it loudly here, and let the browser tests fail with the same words.
        print(f"WARNING: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
