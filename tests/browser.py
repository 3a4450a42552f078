"""Debian's Chromium under playwright, as every browser test starts it."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, Playwright

# At launch, not per context: a context's user agent does not reach beacons of a page that is being left. Headless
# Chromium calls itself HeadlessChrome, which a sidecar takes for a bot.
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 Safari/537.36"

ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    # Nothing but loopback, and no requests of the browser's own among those under test.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _missing() -> NoReturn:
    reason = "no /usr/bin/chromium: install Debian's package `chromium`"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def chromium_path() -> str:
    """Where it is. Without one the test is skipped, but fails in CI, where nobody would notice a skip."""
    return shutil.which("chromium", path="/usr/bin:/usr/local/bin") or _missing()


def launch(playwright: Playwright, major: int = 156) -> Browser:
    """A browser with the back/forward cache on (playwright turns it off) and a visitor's user agent."""
    return playwright.chromium.launch(
        executable_path=chromium_path(),
        args=[*ARGS, f"--user-agent={USER_AGENT.format(major)}"],
        ignore_default_args=["--disable-back-forward-cache"],
    )
