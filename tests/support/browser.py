"""A headless browser, where there is one: what it shows of a page, and pictures of it.

    python -m tests.support.browser http://127.0.0.1:8080/ FOLDER

makes the pictures of a page that is served: light and dark, 375 and 1,280 pixels wide.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120.0  # on a machine that does other things too


def browser() -> str | None:
    """The program; None where none is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def run(*arguments: str, virtual_ms: int = 3_000) -> str:
    """What the browser prints, once `virtual_ms` of the page's own time have passed."""
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}", "--no-first-run"]
        command += [f"--virtual-time-budget={virtual_ms}", "--disable-background-networking"]
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            return process.communicate(timeout=SECONDS)[0]
        finally:  # its children too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def dom(url: str, width: int = 1_280, virtual_ms: int = 3_000) -> str:
    """The document as it is after scripts have run."""
    return run(f"--window-size={width},900", "--dump-dom", url, virtual_ms=virtual_ms)


def picture(url: str, file: Path, width: int, height: int, dark: bool = False) -> Path:
    """A PNG of the page."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    run(f"--window-size={width},{height}", *scheme, f"--screenshot={file}", url)
    assert file.stat().st_size > 0
    return file


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for dark in (False, True):
        for width, height in ((375, 3_400), (1_280, 1_900)):
            file = folder / f"page-{'dark' if dark else 'light'}-{width}.png"
            print(picture(url, file, width, height, dark))


if __name__ == "__main__":
    main()
