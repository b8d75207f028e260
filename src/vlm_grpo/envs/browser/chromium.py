"""Find Chromium, and define the flags that isolate pages and make rendering deterministic."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)

BINARY = "VLM_GRPO_CHROMIUM"  # environment variable with the path of the browser
NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "chrome-headless-shell", "google-chrome", "chrome")
PLAYWRIGHT = ("chromium-*/chrome-linux*/chrome", "chromium_headless_shell-*/chrome-linux*/*headless*shell")
INSTALL = (
    "install one with 'apt-get install chromium', or with 'pip install playwright' and 'playwright install chromium', "
    f"or name its binary in {BINARY}"
)
NOWHERE = "127.0.0.1:1"  # address of a proxy that does not exist
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # in containers /dev/shm has 64 MiB, too little for Chromium
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    # Each tab already has its own process; a new one for each page would take three times as long.
    "--disable-site-isolation-trials",
    "--disable-back-forward-cache",
    "--disable-features=Translate,MediaRouter,OptimizationHints,PaintHolding,IsolateOrigins,site-per-process,"
    "IsolateSandboxedIframes,SpareRendererForSitePerProcess",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
    "--password-store=basic",
    "--use-mock-keychain",
    # No network access, not even to this machine.
    f"--proxy-server={NOWHERE}",
    "--proxy-bypass-list=<-loopback>",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    # Deterministic rendering.
    "--force-color-profile=srgb",
    "--force-device-scale-factor=1",
    "--font-render-hinting=none",
    "--disable-lcd-text",
    "--hide-scrollbars",
)
NO_SANDBOX = "--no-sandbox"
NETLESS = (("unshare", "--user", "--map-current-user", "--net"), ("unshare", "--net"))


class BrowserError(RuntimeError):
    """The browser is missing, could not be started or has exited, not necessarily because of a page."""


class BrowserGone(BrowserError):
    """The browser has exited."""


def find_chromium() -> str | None:
    """Return the path of Chromium: VLM_GRPO_CHROMIUM, one on the PATH, or Playwright's; None if there is none.

    Raises:
        BrowserError: VLM_GRPO_CHROMIUM is not a program.
    """
    named = os.environ.get(BINARY)
    if named:
        path = shutil.which(named)
        if path is None:
            raise BrowserError(
                f"{BINARY}: expected the path of Chromium, got {named!r}, which is not a program; {INSTALL}"
            )
        return path
    installed = next(filter(None, map(shutil.which, NAMES)), None)
    return installed or _from_playwright()


def check_browser() -> str:
    """Return the path of Chromium.

    Raises:
        BrowserError: there is none; the message says how to install one.
    """
    binary = find_chromium()
    if binary is None:
        raise BrowserError(f"no Chromium found ({', '.join(NAMES)}, or Playwright's); {INSTALL}")
    return binary


def _from_playwright() -> str | None:
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    paths = [path for pattern in PLAYWRIGHT for path in sorted(folder.glob(pattern))]
    return str(paths[-1]) if paths else None


@lru_cache
def netless() -> tuple[str, ...]:
    """Return a command prefix that runs a program without network devices; empty if the system forbids it."""
    for command in NETLESS:
        with contextlib.suppress(OSError):
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return command
    logger.warning("'unshare --net' is not permitted: only Chromium's own settings keep pages off the network")
    return ()
