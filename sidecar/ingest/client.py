"""What a User-Agent says: device, browser, operating system, and whether it is a bot."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from ua_parser import Domain, Parser
from ua_parser.loaders import load_lazy_builtins

_TABLET = re.compile(r"iPad|Tablet|Kindle|Silk/|PlayBook|Android(?!.*Mobi)", re.IGNORECASE)
_MOBILE = re.compile(r"Mobi|iPhone|iPod|Android|Windows Phone|Opera Mini", re.IGNORECASE)
_OS_NAMES = {"Mac OS X": "macOS"}  # its maker's name since 2016
_AGENT_MAX = 1024  # characters read of a User-Agent


class Agent(NamedTuple):
    """What a User-Agent says; None where it says nothing. `bot` is the name of a known crawler."""

    device_type: str | None
    browser_name: str | None
    browser_version: str | None
    os_name: str | None
    os_version: str | None
    bot: str | None


NO_AGENT = Agent(None, None, None, None, None, "no user agent")  # every browser sends one


@cache
def _parser() -> Parser:
    """Of browsers and systems alone: what it knows of devices is as large again and is not asked."""
    browsers, systems, _ = load_lazy_builtins()
    return Parser.from_matchers((browsers, systems, []))


@cache
def _any_crawler() -> re.Pattern[str]:
    return re.compile("|".join(crawler["pattern"] for crawler in CRAWLER_USER_AGENTS_DATA))


@cache
def _crawlers() -> list[tuple[re.Pattern[str], str]]:
    patterns = [crawler["pattern"] for crawler in CRAWLER_USER_AGENTS_DATA]
    return [(re.compile(pattern), re.sub(r"\\(.)", r"\1", pattern).strip("^$ /")) for pattern in patterns]


def _bot(user_agent: str) -> str | None:
    if not _any_crawler().search(user_agent):
        return None
    return next((name for pattern, name in _crawlers() if pattern.search(user_agent)), "bot")


def _version(*parts: str | None) -> str | None:
    said = ".".join(part for part in parts if part)
    return re.sub(r"(\.0)+$", "", said) or None


def _name(family: str | None) -> str | None:
    return None if family in (None, "Other") else family


@lru_cache(maxsize=4096)
def read_user_agent(user_agent: str) -> Agent:
    """Device, browser and OS of a User-Agent header. Uncached about 60 us, cached 0.1 us."""
    text = user_agent[:_AGENT_MAX].strip()
    if not text:
        return NO_AGENT
    said = _parser()(text, Domain.USER_AGENT | Domain.OS)
    browser, system = said.user_agent, said.os
    if _TABLET.search(text):
        device_type: str | None = "tablet"
    elif _MOBILE.search(text):
        device_type = "mobile"
    else:
        device_type = "desktop" if system and _name(system.family) else None
    os_name = _name(system.family) if system else None
    return Agent(
        device_type,
        _name(browser.family) if browser else None,
        _version(browser.major, browser.minor, browser.patch) if browser else None,
        _OS_NAMES.get(os_name, os_name) if os_name else None,
        _version(system.major, system.minor, system.patch) if system else None,
        _bot(text),
    )
