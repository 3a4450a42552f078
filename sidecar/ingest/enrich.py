"""Items to facts: an ordered list of steps. `drop_` steps may leave an item out, `put_` steps add what it lacks.

The first refusal stops an item. Nothing here knows the store or HTTP: what a request says comes in as `Source`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from sidecar.attribution import campaign_of, click_ids_of
from sidecar.canonical import to_json
from sidecar.ingest.client import Agent, read_user_agent
from sidecar.ingest.place import Places, parse_address, private_address
from sidecar.ingest.wire import Device, EventItem, Item, VitalItem, make_page
from sidecar.model import NO_CLIENT, Client, EventFact, Fact, Rejection, VitalFact, rate

PAST_MAX_MS = 7 * 86_400_000
FUTURE_MAX_MS = 5 * 60_000
DEFAULT_FUNNEL = "default"


class Rules(NamedTuple):
    """The settings that enrichment obeys."""

    site: str
    ip_privacy: str
    respect_dnt: bool
    require_consent: bool
    keep_bots: bool
    places: Places


class Source(NamedTuple):
    """What a request says beside its body. `salt` is the day's, for clients that send no ids; `trusted`: right key."""

    user_agent: str
    address: str | None
    referer: str | None
    do_not_track: bool
    trusted: bool
    salt: bytes
    now: int


# --- drops -----------------------------------------------------------------------------------------------------------


def drop_do_not_track(item: Item, source: Source, rules: Rules) -> str | None:  # noqa: ARG001 - one shape for all steps
    """Browsers that ask not to be tracked are not."""
    return "do-not-track" if source.do_not_track and rules.respect_dnt else None


def drop_bot(item: Item, source: Source, rules: Rules) -> str | None:
    """Crawlers and clients without a user agent."""
    if rules.keep_bots:
        return None
    return "bot" if _agent(item, source).bot else None


def drop_without_consent(item: Item, source: Source, rules: Rules) -> str | None:  # noqa: ARG001 - as above
    """Where a site requires consent, items without it."""
    return "consent" if rules.require_consent and not item.consent else None


Drop = Callable[[Item, Source, Rules], str | None]
DROPS: tuple[Drop, ...] = (drop_do_not_track, drop_bot, drop_without_consent)

# --- puts ------------------------------------------------------------------------------------------------------------


def _agent(item: Item, source: Source) -> Agent:
    return read_user_agent(item.user_agent or source.user_agent)


@lru_cache(maxsize=8192)
def _client(device: Device, agent: Agent, address: str | None, rules: Rules) -> Client | None:
    said = device[:5] if any(device[:5]) else agent[:5]
    place = rules.places.find(address)
    client = Client(
        *said, device.screen_width, device.screen_height, agent.bot, *place, private_address(address, rules.ip_privacy)
    )
    return None if client == NO_CLIENT else client


def put_client(item: Item, source: Source, rules: Rules) -> Client | None:
    """Device, place and address. An item's own address counts only with a right key."""
    address = item.address if source.trusted and parse_address(item.address) else source.address
    return _client(item.device, _agent(item, source), address, rules)


def put_time(timestamp: int | None, now: int) -> tuple[int, bool]:
    """The time of a fact and whether the client's clock was of no use: outside the window the receive time counts."""
    if timestamp is None or not now - PAST_MAX_MS <= timestamp <= now + FUTURE_MAX_MS:
        return now, True
    return timestamp, False


@lru_cache(maxsize=4096)
def put_cookieless(source_key: tuple[bytes, str, str | None], site: str, funnel_id: str) -> tuple[str, str]:
    """Session and visitor of an item that names neither: one visitor a day by address and user agent, one session a
    day and funnel. The salt changes every day and is forgotten, so the ids cannot be followed or turned back.
    """
    salt, user_agent, address = source_key
    person = to_json([site, user_agent, address]).encode()
    visitor = blake2b(person, key=salt, digest_size=12).hexdigest()
    session = blake2b(person + funnel_id.encode(), key=salt, digest_size=12, person=b"session").hexdigest()
    return f"daily-{session}", f"daily-{visitor}"


def enrich(items: list[Item], source: Source, rules: Rules) -> tuple[list[tuple[int, Fact]], list[Rejection]]:
    """Facts, each with its place in the beacon, and the items left out on purpose."""
    facts: list[tuple[int, Fact]] = []
    dropped: list[Rejection] = []
    for item in items:
        for drop in DROPS:
            reason = drop(item, source, rules)
            if reason is not None:
                dropped.append(Rejection(item.position, reason, dropped=True))
                break
        else:
            fact = _vital_fact(item, source, rules) if isinstance(item, VitalItem) else _event_fact(item, source, rules)
            facts.append((item.position, fact))
    return facts, dropped


def _vital_fact(item: VitalItem, source: Source, rules: Rules) -> VitalFact:
    funnel_id = item.funnel_id or DEFAULT_FUNNEL
    session_id, anonymous_id, page = item.session_id, item.anonymous_id, item.page
    if session_id is None:
        key = (source.salt, source.user_agent, source.address)
        session_id, anonymous_id = put_cookieless(key, rules.site, funnel_id)
        if page is None or page.url is None:
            page = make_page(source.referer, page and page.path, page and page.title)
    timestamp, clock_skewed = put_time(item.timestamp, source.now)
    return VitalFact(
        rules.site,
        funnel_id,
        session_id,
        item.metric,
        item.id,
        item.value,
        item.rating or rate(item.metric, item.value),
        item.delta,
        item.navigation_type,
        item.seq,
        page,
        anonymous_id,
        put_client(item, source, rules),
        timestamp,
        clock_skewed,
    )


def _event_fact(item: EventItem, source: Source, rules: Rules) -> EventFact:
    timestamp, clock_skewed = put_time(item.timestamp, source.now)
    return EventFact(
        rules.site,
        item.funnel_id or DEFAULT_FUNNEL,
        item.session_id,
        item.id,
        item.name,
        item.properties,
        item.page,
        item.referrer,
        item.context,
        campaign_of(item.utm, item.page and item.page.url),
        click_ids_of(item.click_ids, item.page and item.page.url),
        item.anonymous_id,
        put_client(item, source, rules),
        timestamp,
        clock_skewed,
    )
