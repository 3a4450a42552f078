"""Where a visit came from, read from an event: UTM parameters and click ids, its own or those of its page address.

A function of what a session document holds, so that imported events say the same as received ones.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from sidecar.canonical import to_json
from sidecar.model import Campaign

CLICK_IDS = frozenset(
    {"gclid", "gbraid", "wbraid", "dclid", "fbclid", "msclkid", "ttclid", "twclid", "li_fbid", "yclid", "epik"}
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)


def _query(url: str | None) -> dict[str, str]:
    if not url or "?" not in url:
        return {}
    pairs = parse_qsl(url.split("#", 1)[0].split("?", 1)[1], errors="replace")
    return {key.lower(): value for key, value in reversed(pairs)}  # of several, the first counts


def _texts(said: Any) -> dict[str, str]:
    if not isinstance(said, dict):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, str) and value}


def campaign_of(utm: Any, url: str | None) -> Campaign | None:
    """UTM parameters as a set: of `context.utm` where it has any of the five, else of the page address."""
    said = _texts(utm)
    campaign = Campaign(*(said.get(field) for field in Campaign._fields))
    if not any(campaign):
        query = _query(url)
        campaign = Campaign(*(query.get(f"utm_{field}") for field in Campaign._fields))
    return campaign if any(campaign) else None


def click_ids_of(click_ids: Any, url: str | None) -> str | None:
    """Click ids as a set, canonical JSON: of `context.clickIds` where it has any, else of the page address."""
    found = _texts(click_ids) or {key: value for key, value in _query(url).items() if key in CLICK_IDS}
    return to_json(found) if found else None


def host_of(referrer: str | None) -> str | None:
    """`https://www.News.example/a` -> `news.example`; None where there is none; what is no address stays as it is."""
    if referrer is None:
        return None
    match = _ADDRESS.match(referrer)
    if match is None:
        return referrer
    host = match[1].rpartition("@")[2].lower().removeprefix("www.")  # without user and password
    return host or None
