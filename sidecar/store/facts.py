"""Statements that upsert facts and derive sessions and visitors: the write path, and the merge of all that comes in.

Facts of a group are judged in Python against what is held (`judge`, a pure function), the winners are written, and the
rows of every touched session and of its visitors are rebuilt from the views in schema.sql, in the same transaction.
Keys are resolved by SQL each time: the command line is another process on the same file, so nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from json import dumps, loads
from typing import Any, NamedTuple, TypeVar

from sidecar.canonical import client_bits, content, content_size, digest, page_bits
from sidecar.model import (
    NAVIGATION_TYPES,
    RATINGS,
    SESSION_BYTES_MAX,
    SESSION_FACTS_MAX,
    Campaign,
    Client,
    EventFact,
    Fact,
    Outcome,
    Page,
    VitalFact,
)
from sidecar.store.arrivals import Refused, arrival_of, find_refused, note_arrivals
from sidecar.store.database import Connection
from sidecar.store.tombstones import ERASED, find_erased

# Canonical JSON is at most 3.4 times as long as what was sent: `1e15,` becomes `1000000000000000,`, and no token grows
# more. Of an item of 16 KiB that makes 54.4 KiB; the client, read from headers, and the frame are less than 9.6 KiB.
FACT_BYTES_MAX = 64 * 1024
# Below this many facts of beacons a session cannot be full. Facts of documents are of any size: where a session holds
# a larger one, or is given facts of a document, the sum is asked.
_BYTES_CHECK_FROM = SESSION_BYTES_MAX // FACT_BYTES_MAX
FULL = "session is full"


class Recording(NamedTuple):
    """One beacon's facts, each with its place in the beacon, and when it was received. `refused` is only noted."""

    facts: list[tuple[int, Fact]]
    now: int
    refused: tuple[Refused, ...] = ()


class Judged(NamedTuple):
    """What became of one fact; `reason` where it was rejected."""

    position: int
    outcome: Outcome
    reason: str | None = None


class Recorded(NamedTuple):
    """What became of one beacon. `opened`: (funnel, session) ids of sessions that a web vital of it created."""

    judged: list[Judged]
    opened: list[tuple[str, str]]


# --- judging ---------------------------------------------------------------------------------------------------------


def _newer(fact: Fact, held: Fact) -> bool:
    if fact.timestamp != held.timestamp:
        return fact.timestamp > held.timestamp
    if isinstance(fact, VitalFact) and isinstance(held, VitalFact) and (fact.seq, fact.value) != (held.seq, held.value):
        return (fact.seq, fact.value) > (held.seq, held.value)
    return content(fact) > content(held)


def judge(fact: Fact, held: Fact | None, *, dated_by_arrival: bool = True) -> Outcome:
    """What a report is to the one that is held: of several reports the newest wins.

    A client whose clock is of no use is dated by arrival, so its repeats differ by their time alone: duplicates. Facts
    from documents carry their time with them (`dated_by_arrival` False): there the newest wins in this case, too.
    """
    if held is None:
        return Outcome.ACCEPTED
    if fact == held:
        return Outcome.DUPLICATE
    if dated_by_arrival and (fact.clock_skewed or held.clock_skewed):
        same_time = fact._replace(timestamp=held.timestamp, clock_skewed=held.clock_skewed)
        if same_time == held:
            return Outcome.DUPLICATE
    return Outcome.ACCEPTED if _newer(fact, held) else Outcome.SUPERSEDED


_RATING_CODES = {rating: code for code, rating in enumerate(RATINGS)}
_NAVIGATION_CODES = {None: None} | {name: code for code, name in enumerate(NAVIGATION_TYPES)}

# --- statements ------------------------------------------------------------------------------------------------------

_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # few texts, so that all stay prepared


@lru_cache(maxsize=512)
def _with_values(sql: str, width: int, count: int) -> str:
    row = f"({','.join('?' * width)})"
    return sql.replace("{values}", f"(VALUES {','.join([row] * count)})")


def _parts(sql: str, table: Sequence[Sequence[Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Statements over rows: `{values}` stands for them, with columns column1, column2 and so on, at most 256 at a time.

    Rows of -1 fill up to the next size, so the statement must not match or must leave out `column1 < 0`. NULL, bool and
    bytes are better avoided: sqlite3 looks for an adapter of each, 1 us, and takes the rest as it is.
    """
    for start in range(0, len(table), _SIZES[-1]):
        part = table[start : start + _SIZES[-1]]
        width = len(part[0])
        size = next(size for size in _SIZES if size >= len(part))
        flat = [cell for row in part for cell in row]
        yield _with_values(sql, width, size), flat + [-1] * (width * (size - len(part)))


def _read(conn: Connection, sql: str, table: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    for text, parameters in _parts(sql, table):
        yield from conn.execute(text, parameters).fetchall()


def _run(conn: Connection, sql: str, table: Sequence[Sequence[Any]]) -> None:
    for text, parameters in _parts(sql, table):
        conn.execute(text, parameters)


_ADD_FUNNELS = """
INSERT INTO funnels (funnel_key, site, funnel_id) SELECT * FROM {values} WHERE column1 >= 0"""
_ADD_NAMES = """
INSERT INTO anonymous_ids (visitor_key, site, anonymous_id) SELECT * FROM {values} WHERE column1 >= 0"""
_ADD_PAGES = "INSERT INTO pages SELECT * FROM {values} WHERE column1 >= 0"
_ADD_CAMPAIGNS = "INSERT INTO campaigns SELECT * FROM {values} WHERE column1 >= 0"
_ADD_CLIENTS = "INSERT INTO clients SELECT * FROM {values} WHERE column1 >= 0"
_ADD_SESSIONS = """
INSERT INTO sessions (session_key, funnel_key, session_id) SELECT * FROM {values} WHERE column1 >= 0"""
# A row a fact: place, site, funnel, session, visitor, digests of page, client and campaign. One statement and one row
# of JSON, since each statement and each row that sqlite3 steps to gives up the GIL, and under load it takes long to get
# it back (one row, not a row each: b/a of the benchmark 0.29 -> 0.40).
_FIND = """
SELECT json_group_array(json_array(column1, f.funnel_key, s.session_key, s.visitor_key, s.started_at,
        s.vitals_count + s.events_count, EXISTS (SELECT 1 FROM events AS e INDEXED BY events_large
            WHERE e.session_key = s.session_key AND e.content_bytes > 65536),
        n.visitor_key, p.page_key, c.client_key, u.campaign_key)),
    (SELECT coalesce(max(funnel_key), 0) FROM funnels), (SELECT coalesce(max(session_key), 0) FROM sessions),
    (SELECT coalesce(max(visitor_key), 0) FROM anonymous_ids), (SELECT coalesce(max(page_key), 0) FROM pages),
    (SELECT coalesce(max(client_key), 0) FROM clients), (SELECT coalesce(max(campaign_key), 0) FROM campaigns),
    (SELECT EXISTS (SELECT 1 FROM tombstones))
FROM {values} AS wanted
LEFT JOIN funnels AS f ON f.site = column2 AND f.funnel_id = column3
LEFT JOIN sessions AS s ON s.funnel_key = f.funnel_key AND s.session_id = column4
LEFT JOIN anonymous_ids AS n ON n.site = column2 AND n.anonymous_id = column5
LEFT JOIN pages AS p ON p.digest = column6
LEFT JOIN clients AS c ON c.digest = column7
LEFT JOIN campaigns AS u ON u.digest = column8
WHERE column1 >= 0"""

_CLIENT_COLUMNS = """c.client_key, c.device_type, c.browser_name, c.browser_version, c.os_name, c.os_version,
c.screen_width, c.screen_height, c.bot, c.country_code, c.country_name, c.region, c.city, c.ip_address"""
VITAL_COLUMNS = f"""v.session_key, v.metric, v.id, v.value, v.rating, v.delta, v.navigation_type, v.seq,
p.page_key, p.url, p.path, p.title, a.anonymous_id, v.timestamp, v.clock_skewed, {_CLIENT_COLUMNS}"""
EVENT_COLUMNS = f"""v.session_key, v.event_id, v.event_name, v.properties, v.referrer, v.context, v.click_ids,
p.page_key, p.url, p.path, p.title, a.anonymous_id, v.timestamp, v.clock_skewed, {_CLIENT_COLUMNS},
g.campaign_key, g.source, g.medium, g.campaign, g.term, g.content"""
FACT_JOINS = """
LEFT JOIN pages AS p ON p.page_key = v.page_key
LEFT JOIN anonymous_ids AS a ON a.visitor_key = v.visitor_key
LEFT JOIN clients AS c ON c.client_key = v.client_key"""
CAMPAIGN_JOIN = "LEFT JOIN campaigns AS g ON g.campaign_key = v.campaign_key"
_HELD_VITALS = f"""
SELECT {VITAL_COLUMNS} FROM {{values}} AS wanted
CROSS JOIN web_vitals AS v ON v.session_key = column1 AND v.metric = column2 AND v.id = column3 {FACT_JOINS}"""
_HELD_EVENTS = f"""
SELECT {EVENT_COLUMNS} FROM {{values}} AS wanted
CROSS JOIN events AS v ON v.session_key = column1 AND v.event_id = column2 {FACT_JOINS} {CAMPAIGN_JOIN}"""
_SESSION_BYTES = """
SELECT (SELECT coalesce(sum(content_bytes), 0) FROM web_vitals WHERE session_key = ?1)
     + (SELECT coalesce(sum(content_bytes), 0) FROM events WHERE session_key = ?1)"""
_PUT_VITALS = """
INSERT INTO web_vitals (session_key, metric, id, value, rating_code, delta, navigation_code, seq, page_key, visitor_key,
                        client_key, timestamp, clock_skewed, content_bytes)
SELECT * FROM {values} WHERE column1 >= 0
ON CONFLICT (session_key, metric, id) DO UPDATE SET
    value = excluded.value, rating_code = excluded.rating_code, delta = excluded.delta,
    navigation_code = excluded.navigation_code, seq = excluded.seq, page_key = excluded.page_key,
    visitor_key = excluded.visitor_key, client_key = excluded.client_key, timestamp = excluded.timestamp,
    clock_skewed = excluded.clock_skewed, content_bytes = excluded.content_bytes"""
_PUT_EVENTS = """
INSERT INTO events (session_key, event_id, event_name, properties, page_key, referrer, context, campaign_key,
                    click_ids, visitor_key, client_key, timestamp, clock_skewed, content_bytes)
SELECT * FROM {values} WHERE column1 >= 0
ON CONFLICT (session_key, event_id) DO UPDATE SET
    event_name = excluded.event_name, properties = excluded.properties, page_key = excluded.page_key,
    referrer = excluded.referrer, context = excluded.context, campaign_key = excluded.campaign_key,
    click_ids = excluded.click_ids, visitor_key = excluded.visitor_key, client_key = excluded.client_key,
    timestamp = excluded.timestamp, clock_skewed = excluded.clock_skewed, content_bytes = excluded.content_bytes"""

DERIVED_SESSION_COLUMNS = (
    *("visitor_key", "started_at", "ended_at", "first_page_key", "last_page_key", "first_client_key", "other_clients"),
    *("vitals_count", "avg_lcp", "avg_inp", "avg_cls", "avg_fcp", "avg_ttfb"),
    *("page_views", "events_count", "identifications", "converted", "conversion_type", "conversion_value", "currency"),
    *("first_referrer", "first_campaign_key", "last_campaign_key", "first_click_ids", "last_click_ids"),
    "active_seconds",
)
DERIVED_VISITOR_COLUMNS = (
    *("site", "anonymous_id", "display_name", "first_seen", "last_seen", "total_sessions", "total_events"),
    *("user_id", "traits"),
)
_DERIVE = "INSERT INTO derivations (sessions, with_events, moved, visitors, now) VALUES (?, ?, ?, ?, ?)"


# --- rows to facts ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def _client(fields: tuple[Any, ...]) -> Client:
    return Client(*fields)


class FactOwner(NamedTuple):
    """The texts that a fact's session key stands for."""

    site: str
    funnel_id: str
    session_id: str


def read_vital(row: tuple[Any, ...], owner: FactOwner) -> VitalFact:
    """A fact from a row of VITAL_COLUMNS."""
    _, metric, vital_id, value, rating, delta, navigation_type, seq = row[:8]
    page_key, url, path, title, anonymous_id, timestamp, clock_skewed, client_key = row[8:16]
    page = None if page_key is None else Page(url, path, title)
    client = None if client_key is None else _client(row[16:])
    links: list[Any] = [delta, navigation_type, seq, page, anonymous_id, client, timestamp, bool(clock_skewed)]
    return VitalFact(*owner, metric, vital_id, value, rating, *links)


def read_event(row: tuple[Any, ...], owner: FactOwner) -> EventFact:
    """A fact from a row of EVENT_COLUMNS."""
    _, event_id, event_name, properties, referrer, context, click_ids = row[:7]
    page_key, url, path, title, anonymous_id, timestamp, clock_skewed, client_key = row[7:15]
    page = None if page_key is None else Page(url, path, title)
    client = None if client_key is None else _client(row[15:28])
    campaign = None if row[28] is None else Campaign(*row[29:])
    links: list[Any] = [page, referrer, context, campaign, click_ids, anonymous_id, client, timestamp]
    links.append(bool(clock_skewed))
    return EventFact(*owner, event_id, event_name, properties, *links)


# --- storing ---------------------------------------------------------------------------------------------------------


_Owner = tuple[str, str, str]  # site, funnel and session id: the first three fields of a fact


class _Session:
    """A session that a group touches, as far as storing needs it."""

    __slots__ = (
        "bytes_added",
        "bytes_held",
        "events_changed",
        "facts_count",
        "is_large",
        "is_new",
        "key",
        "may_leave_visitor",
        "may_move",
        "owner",
        "started_at",
        "visitor_key",
        "vitals_changed",
    )

    def __init__(
        self,
        owner: _Owner,
        key: int,
        visitor_key: int | None = None,
        started_at: int | None = None,
        facts_count: int = 0,
        is_large: int = 0,
    ) -> None:
        self.owner = owner
        self.key = key
        self.visitor_key = visitor_key
        self.started_at = started_at
        self.facts_count = facts_count
        self.is_large = bool(is_large)  # it holds a fact larger than FACT_BYTES_MAX
        self.bytes_added = 0  # by this merge, which writes at its end
        self.bytes_held: int | None = None  # before it; known only where the bound may be near
        self.is_new = started_at is None
        self.vitals_changed = False
        self.events_changed = False
        self.may_move = self.is_new  # its visitor or its start may be another than before
        self.may_leave_visitor = False  # a fact that named a visitor was replaced, or one names another

    def replace(self, before: Fact) -> None:
        """A report of a fact is replaced by a newer one."""
        self.may_move = True
        if before.anonymous_id is not None:
            self.may_leave_visitor = True

    def take(self, fact: Fact, name_key: int | None) -> None:
        """A fact is written."""
        if self.started_at is None or fact.timestamp < self.started_at:
            self.may_move = True
        if name_key is not None and name_key != self.visitor_key:
            self.may_move = True
            if self.visitor_key is not None:
                self.may_leave_visitor = True
        if isinstance(fact, VitalFact):
            self.vitals_changed = True
        else:
            self.events_changed = True


class Stored(NamedTuple):
    """What a merge did: an outcome and reason a fact, and the sessions it touched, by (site, funnel, session) ids.

    `replaced`: (session key, report that was held, its place in the merge) of facts that got a newer one.
    """

    outcomes: list[tuple[Outcome, str | None]]
    sessions: dict[_Owner, _Session]
    replaced: list[tuple[int, Fact, int]]

    @property
    def changed(self) -> list[_Session]:
        """The sessions whose facts changed."""
        return [session for session in self.sessions.values() if session.vitals_changed or session.events_changed]


class Known:
    """Keys of what facts name, as far as it is there; the greatest key of each kind; whether anything was erased."""

    __slots__ = ("any_erased", "campaigns", "clients", "funnels", "greatest", "names", "pages", "sessions")

    def __init__(self) -> None:
        self.funnels: dict[tuple[str, ...], int] = {}
        self.sessions: dict[_Owner, list[Any]] = {}  # the arguments of a `_Session`
        self.names: dict[tuple[str, ...], int] = {}
        self.pages: dict[Page | None, int | None] = {None: None}
        self.clients: dict[Client | None, int | None] = {None: None}
        self.campaigns: dict[Campaign | None, int | None] = {None: None}
        self.greatest: list[int] = []  # in that order
        self.any_erased = False


def _blob(row: tuple[str | int | None, ...] | None) -> bytearray:
    """The digest as it is quickest to bind; an empty one, which is nobody's, of nothing."""
    return bytearray() if row is None else bytearray(digest(row))


def look_up(conn: Connection, facts: Sequence[Fact]) -> Known:
    """The keys of all that the facts name."""
    known = Known()
    table = [
        (
            *(place, *fact[:3], fact.anonymous_id or ""),
            *(_blob(fact.page), _blob(fact.client), _blob(fact.campaign if isinstance(fact, EventFact) else None)),
        )
        for place, fact in enumerate(facts)
    ]
    for sql, parameters in _parts(_FIND, table):
        found, *known.greatest, any_erased = conn.execute(sql, parameters).fetchone()
        known.any_erased = bool(any_erased)
        for place, funnel, *session, name, page, client, campaign in loads(found):
            fact = facts[place]
            if funnel is not None:
                known.funnels[fact[:2]] = funnel
            if session[0] is not None:
                known.sessions[fact[:3]] = session
            if name is not None:
                known.names[fact.site, fact.anonymous_id] = name
            if page is not None:
                known.pages[fact.page] = page
            if client is not None:
                known.clients[fact.client] = client
            if campaign is not None:
                known.campaigns[fact.campaign] = campaign
    return known


_Row = TypeVar("_Row", bound=tuple[Any, ...])


def _add_texts(
    conn: Connection, sql: str, keys: dict[tuple[str, ...], int], said: Iterable[Any], greatest: int
) -> None:
    """Add the funnels or names that have no key yet, and give them one."""
    missing = [row for row in dict.fromkeys(said) if row not in keys]
    keys |= {row: key for key, row in enumerate(missing, greatest + 1)}
    _run(conn, sql, [(keys[row], *row) for row in missing])


def _intern(
    conn: Connection,
    sql: str,
    keys: dict[_Row | None, int | None],
    said: Iterable[_Row | None],
    greatest: int,
    bits: Callable[[Any], int] | None,
    width: int,
) -> None:
    """Add the pages, clients or campaigns that have no key yet; the low `width` bits of a new key are `bits(row)`."""
    missing: list[tuple[Any, ...]] = []
    for row in said:
        if row is not None and row not in keys:
            key = ((greatest >> width) + 1 + len(missing) << width) + (bits(row) if bits else 0)
            keys[row] = key
            missing.append((key, _blob(row), *row))
    _run(conn, sql, missing)


def _open_sessions(conn: Connection, owned: Iterable[_Owner], known: Known) -> dict[_Owner, _Session]:
    owners = dict.fromkeys(owned)
    sessions = {owner: _Session(owner, *said) for owner, said in known.sessions.items()}
    missing = [owner for owner in owners if owner not in sessions]
    if missing:
        _add_texts(conn, _ADD_FUNNELS, known.funnels, (owner[:2] for owner in missing), known.greatest[0])
        added = [(key, known.funnels[owner[:2]], owner[2]) for key, owner in enumerate(missing, known.greatest[1] + 1)]
        sessions |= {owner: _Session(owner, key) for owner, (key, _, _) in zip(missing, added, strict=True)}
        _run(conn, _ADD_SESSIONS, added)
    return sessions


_Identity = tuple[int, str, str] | tuple[int, str]  # (session, metric, id) of a vital, (session, id) of an event


def _find_held(
    conn: Connection, identities: Sequence[_Identity], sessions: Sequence[_Session]
) -> dict[_Identity, Fact | None]:
    known = {session.key: FactOwner(*session.owner) for session in sessions if not session.is_new}
    if not known:
        return {}
    wanted = {identity for identity in identities if identity[0] in known}
    held: dict[_Identity, Fact | None] = {}
    for row in _read(conn, _HELD_VITALS, [identity for identity in wanted if len(identity) == 3]):
        held[row[:3]] = read_vital(row, known[row[0]])
    for row in _read(conn, _HELD_EVENTS, [identity for identity in wanted if len(identity) == 2]):
        held[row[:2]] = read_event(row, known[row[0]])
    return held


def _has_room(conn: Connection, session: _Session, size: int, *, is_bounded: bool) -> bool:
    """`is_bounded`: the fact is of a beacon, so it is at most FACT_BYTES_MAX."""
    if session.facts_count >= SESSION_FACTS_MAX:
        return False
    if is_bounded and not session.is_large and session.facts_count < _BYTES_CHECK_FROM:
        return True
    if session.bytes_held is None:
        session.bytes_held = conn.execute(_SESSION_BYTES, (session.key,)).fetchone()[0]
    return session.bytes_held + session.bytes_added + size <= SESSION_BYTES_MAX


def store_facts(
    conn: Connection, facts: Sequence[Fact], known: Known | None = None, *, dated_by_arrival: bool = True
) -> Stored:
    """Judge facts in order, also against each other, and write the winners. Derives nothing yet.

    `known`: what `look_up` said of these facts in the same transaction; None looks it up.
    """
    if known is None:
        known = look_up(conn, facts)
    owners: list[Any] = [fact[:3] for fact in facts]
    by_owner = _open_sessions(conn, owners, known)
    sessions = [by_owner[owner] for owner in owners]
    identities: list[_Identity] = [
        (session.key, fact.metric, fact.id) if isinstance(fact, VitalFact) else (session.key, fact.id)
        for session, fact in zip(sessions, facts, strict=True)
    ]
    held = _find_held(conn, identities, sessions)
    outcomes: list[tuple[Outcome, str | None]] = []
    winners: dict[_Identity, _Winner] = {}
    replaced: list[tuple[int, Fact, int]] = []
    for fact, session, identity in zip(facts, sessions, identities, strict=True):
        before = held.get(identity)
        outcome = judge(fact, before, dated_by_arrival=dated_by_arrival)
        if outcome is Outcome.ACCEPTED:
            size = content_size(fact)
            if before is None:
                if not _has_room(conn, session, size, is_bounded=dated_by_arrival):
                    outcomes.append((Outcome.REJECTED, FULL))
                    continue
                session.facts_count += 1
                session.bytes_added += size
            else:
                session.bytes_added += size - content_size(before)
                session.replace(before)
                replaced.append((session.key, before, len(outcomes)))
            held[identity] = fact
            winners[identity] = (fact, size, session)
        outcomes.append((outcome, None))
    if winners:
        _write(conn, winners, known)
    return Stored(outcomes, by_owner, replaced)


_Winner = tuple[Fact, int, _Session]  # with the size of its canonical content


def _write(conn: Connection, winners: dict[_Identity, _Winner], known: Known) -> None:
    facts = [winner[0] for winner in winners.values()]
    names, pages, clients, campaigns = known.names, known.pages, known.clients, known.campaigns
    _intern(conn, _ADD_PAGES, pages, [fact.page for fact in facts], known.greatest[3], page_bits, 1)
    _intern(conn, _ADD_CLIENTS, clients, [fact.client for fact in facts], known.greatest[4], client_bits, 3)
    named = [fact.campaign for fact in facts if isinstance(fact, EventFact)]
    _intern(conn, _ADD_CAMPAIGNS, campaigns, named, known.greatest[5], None, 0)
    wanted = [(fact.site, fact.anonymous_id) for fact in facts if fact.anonymous_id is not None]
    _add_texts(conn, _ADD_NAMES, names, wanted, known.greatest[2])
    vitals: list[tuple[Any, ...]] = []
    events: list[tuple[Any, ...]] = []
    for identity, (f, size, session) in winners.items():
        name = None if f.anonymous_id is None else names[f.site, f.anonymous_id]
        session.take(f, name)
        rest = (name, clients[f.client], f.timestamp, int(f.clock_skewed), size)
        if isinstance(f, VitalFact):
            codes = (_RATING_CODES[f.rating], f.delta, _NAVIGATION_CODES[f.navigation_type])
            vitals.append((*identity, f.value, *codes, f.seq, pages[f.page], *rest))
        else:
            links = (pages[f.page], f.referrer, f.context, campaigns[f.campaign], f.click_ids)
            events.append((*identity, f.name, f.properties, *links, *rest))
    _run(conn, _PUT_VITALS, vitals)
    _run(conn, _PUT_EVENTS, events)


def derive(conn: Connection, sessions: Sequence[_Session], now: int | None) -> None:
    """Rebuild the derived columns of sessions, then of the visitors that they name, and that they named before.

    `now` (ms) gives the sessions their next revision; None leaves revisions as they are.
    """
    keys = [
        [session.key for session in sessions],
        [session.key for session in sessions if session.events_changed],
        [session.key for session in sessions if session.may_move],
        [s.visitor_key for s in sessions if s.may_leave_visitor and s.visitor_key is not None],
    ]
    conn.execute(_DERIVE, (*map(dumps, keys), now))


def record(conn: Connection, recordings: Sequence[Recording]) -> list[Recorded]:
    """Store the beacons of a group and derive what they touch. For the writer: one result a recording."""
    everything = [fact for facts, _, _ in recordings for _, fact in facts]
    known = look_up(conn, everything)
    erased = find_erased(conn, everything) if known.any_erased else None
    if erased:
        return _record_others(conn, recordings, erased)
    stored = store_facts(conn, everything, known)
    changed = stored.changed
    if changed:
        derive(conn, changed, max(recording.now for recording in recordings))
    if stored.replaced or any(outcome is not Outcome.ACCEPTED for outcome, _ in stored.outcomes):
        times = [recording.now for recording in recordings for _ in recording.facts]
        notes = [
            arrival_of(stored.sessions[fact[:3]].key, fact, outcome, reason, at)
            for fact, at, (outcome, reason) in zip(everything, times, stored.outcomes, strict=True)
            if outcome is not Outcome.ACCEPTED
        ]
        notes += [
            arrival_of(key, before, Outcome.SUPERSEDED, None, times[place]) for key, before, place in stored.replaced
        ]
        note_arrivals(conn, notes)
    for recording in recordings:
        if recording.refused:
            note_arrivals(conn, find_refused(conn, recording.refused, recording.now))
    outcomes = iter(stored.outcomes)
    fresh = {owner for owner, session in stored.sessions.items() if session.is_new}
    results: list[Recorded] = []
    for facts, _, _ in recordings:
        judged = [Judged(position, *next(outcomes)) for position, _ in facts]
        results.append(Recorded(judged, _opened(facts, fresh) if fresh else []))
    return results


def _opened(facts: list[tuple[int, Fact]], fresh: set[_Owner]) -> list[tuple[str, str]]:
    """Sessions whose first fact is a web vital of these; takes what it finds out of `fresh`."""
    opened: list[tuple[str, str]] = []
    for _, fact in facts:
        owner = fact[:3]
        if owner in fresh:
            fresh.discard(owner)
            if isinstance(fact, VitalFact):
                opened.append((fact.funnel_id, fact.session_id))
    return opened


def _record_others(conn: Connection, recordings: Sequence[Recording], erased: set[int]) -> list[Recorded]:
    """Store what is not erased (by place among all facts of the group); the rest is rejected with that reason."""
    places = iter(range(sum(len(recording.facts) for recording in recordings)))
    kept: list[Recording] = []
    refused: list[list[Judged]] = []
    for facts, now, noted in recordings:
        is_erased = [next(places) in erased for _ in facts]
        kept.append(Recording([fact for fact, gone in zip(facts, is_erased, strict=True) if not gone], now, noted))
        refused.append(
            [
                Judged(position, Outcome.REJECTED, ERASED)
                for (position, _), gone in zip(facts, is_erased, strict=True)
                if gone
            ]
        )
    stored = record(conn, kept)
    return [one._replace(judged=one.judged + gone) for one, gone in zip(stored, refused, strict=True)]
