"""The pages of sessions and visitors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.model import PLACEHOLDER_TTFB, Client, EventFact, Fact, VitalFact
from sidecar.store.arrivals import read_arrivals
from sidecar.store.choices import list_choices
from sidecar.store.database import Connection
from sidecar.store.documents import read_facts, summary
from sidecar.store.erasure import Erased, forget
from sidecar.store.explain import count_facts, explain, group_left_out, value_text
from sidecar.store.facts import FactOwner
from sidecar.store.figures import METRICS, latest_start
from sidecar.store.lists import (
    SEARCH_MAX,
    SESSION_SORTS,
    VISITOR_SORTS,
    Part,
    Wanted,
    count_belongings,
    list_sessions,
    list_visitors,
)
from sidecar.store.queries import FilterError, Row
from sidecar.store.scope import Scope
from sidecar.web.format import describe, page_url
from sidecar.web.frame import Frame, Origin, with_parameters
from sidecar.web.read import NotFoundError, find_session, find_visitor, read_filters
from sidecar.web.timeline import draw

FACTS_MAX = 500  # on one page of a session
ALWAYS = Scope(-(2**62), 2**62)

_OFFSET = re.compile(r"[0-9]{1,5}")
_SORT_ALSO = {"slowest": "lcp"}  # what links of other pages say
_ERASE = "/erase"

log = structlog.get_logger("sidecar.people")


def fact_entry(fact: Fact, started_at: int, clients: dict[Client, int]) -> dict[str, Any]:
    """A fact as a line of the session's table. `clients`: numbers of those seen so far; a new one gets the next."""
    marks = []
    if fact.client is not None:
        client_number = clients.setdefault(fact.client, len(clients) + 1)
        if client_number > 1:
            marks.append(f"client {client_number}")
        if fact.client.bot:
            marks.append(f"bot: {fact.client.bot}")
    if fact.clock_skewed:
        marks.append("clock skewed")
    entry = {"at": fact.timestamp, "offset_ms": fact.timestamp - started_at, "page": fact.page, "marks": marks}
    if isinstance(fact, EventFact):
        return entry | {"kind": "event", "name": fact.name, "properties": fact.properties, "navigation_type": None}
    if fact.metric == "TTFB" and fact.navigation_type in PLACEHOLDER_TTFB:
        marks.append("placeholder, in no average")
    value = {"metric": fact.metric, "value": fact.value, "rating": fact.rating}
    return entry | {"kind": "web vital", "name": fact.metric, "navigation_type": fact.navigation_type} | value


def _tell(facts: Sequence[Fact], document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The derived values of a session as rows: `values` by name, their common rule, `facts` and `left_out` in words."""
    numbers = {fact: place for place, fact in enumerate(facts, 1)}
    told = []
    for _, same in groupby(explain(facts, dict(document)), key=lambda one: (one.rule, one.facts, one.left_out)):
        values = [*same]
        told.append(
            {
                "values": [(one.name, value_text(one.value)) for one in values],
                "rule": values[0].rule,
                "facts": count_facts(numbers[fact] for fact in values[0].facts),
                "left_out": group_left_out(values[0].left_out, numbers),
            }
        )
    return told


def _read_wanted(request: Request, default: str) -> Wanted:
    """Which page of a list a request asks for."""
    asked = request.query_params.get("sort") or default
    search = request.query_params.get("q", "").strip()[:SEARCH_MAX]
    return Wanted(_SORT_ALSO.get(asked, asked), search or None, request.query_params.get("cursor") or None)


def _kept(wanted: Wanted, default: str) -> dict[str, str]:
    """The parameters of a list that its links keep, beside those of its view."""
    sort = {} if wanted.sort == default else {"sort": wanted.sort}
    return sort | ({"q": wanted.search} if wanted.search else {})


def _paging(request: Request, part: Part) -> dict[str, str | None]:
    """The addresses of the pages around one of a list."""
    return {
        "first_url": with_parameters(request, cursor=None) if part.before else None,
        "before_url": with_parameters(request, cursor=part.before) if part.before else None,
        "after_url": with_parameters(request, cursor=part.after) if part.after else None,
    }


class People:
    """The pages, in a frame."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def sessions(self, conn: Connection, request: Request) -> Response:
        """GET /sessions."""
        view = self._frame.view(request)
        wanted = _read_wanted(request, "newest")
        listed = list_sessions(conn, view.scope, wanted)
        return self._frame.render(
            request,
            "sessions.html",
            section="sessions",
            view=view,
            choices=list_choices(conn),
            kept=_kept(wanted, "newest"),
            listed=listed,
            wanted=wanted,
            latest=None if listed.rows else latest_start(conn),
            sorts=SESSION_SORTS,
            paging=_paging(request, listed),
        )

    def session(self, conn: Connection, request: Request) -> Response:
        """GET /sessions/{sessionId}."""
        row = find_session(conn, request.path_params["session_id"], read_filters(request.query_params))
        offset_text = request.query_params.get("facts") or "0"
        if not _OFFSET.fullmatch(offset_text):
            raise FilterError("facts", "the number of facts to skip")
        offset = int(offset_text)
        facts = read_facts(conn, row["session_key"], FactOwner(row["site"], row["funnel_id"], row["session_id"]))
        clients: dict[Client, int] = {}
        entries = [fact_entry(fact, row["started_at"], clients) for fact in facts]
        later = offset + FACTS_MAX
        shipping = self._frame.context.read_session_shipping(conn, row["session_key"])
        return self._frame.render(
            request,
            "session.html",
            section="sessions",
            origin=self._frame.origin(request),
            row=row,
            line=draw(facts, row["started_at"]),
            entries=entries[offset:later],
            entries_count=len(entries),
            offset=offset,
            explained=_tell(facts, summary(row, self._frame.context.clock(), self._frame.context.session_timeout_ms)),
            arrivals=read_arrivals(conn, row["session_key"]),
            vitals_count={m: sum(isinstance(f, VitalFact) and f.metric == m for f in facts) for m in METRICS},
            next_url=with_parameters(request, facts=str(later)) if later < len(entries) else None,
            first_url=with_parameters(request, facts=None),
            shipping=shipping,
            # Revisions are for programs: `shipping` says in a word what they mean.
            shipping_parts=describe({k: v for k, v in (shipping or {}).items() if not k.endswith("Revision")}),
        )

    def visitors(self, conn: Connection, request: Request) -> Response:
        """GET /visitors."""
        view = self._frame.view(request)
        wanted = _read_wanted(request, "seen")
        listed = list_visitors(conn, view.scope, wanted)
        return self._frame.render(
            request,
            "visitors.html",
            section="visitors",
            view=view,
            choices=list_choices(conn),
            kept=_kept(wanted, "seen"),
            listed=listed,
            wanted=wanted,
            latest=None if listed.rows else latest_start(conn),
            sorts=VISITOR_SORTS,
            paging=_paging(request, listed),
        )

    def visitor(self, conn: Connection, request: Request) -> Response:
        """GET /visitors/{anonymousId}: all of its sessions, whenever they were."""
        return self._visitor(conn, request, request.path_params["anonymous_id"])

    def _visitor(self, conn: Connection, request: Request, anonymous_id: str) -> Response:
        row = find_visitor(conn, anonymous_id, read_filters(request.query_params))
        wanted = _read_wanted(request, "newest")
        listed = list_sessions(conn, ALWAYS, wanted, visitor_key=row["visitor_key"])
        origin = self._frame.origin(request)
        return self._frame.render(
            request,
            "visitor.html",
            section="visitors",
            origin=origin,
            row=row,
            traits=json.loads(row["traits"] or "{}"),
            listed=listed,
            wanted=wanted,
            paging=_paging(request, listed),
            erase_url=_erase_url(row, origin),
        )

    def ask_to_erase(self, conn: Connection, request: Request) -> Response:
        """GET /visitors/{anonymousId}/erase: what would go. Nothing is erased by looking."""
        anonymous_id = request.path_params["anonymous_id"]
        if not _ends_in_erase(request):  # the page of a visitor whose id ends like that
            return self._visitor(conn, request, anonymous_id + _ERASE)
        row = find_visitor(conn, anonymous_id, read_filters(request.query_params))
        origin = self._frame.origin(request)
        return self._frame.render(
            request,
            "erase.html",
            section="visitors",
            origin=origin,
            row=row,
            held=count_belongings(conn, row["visitor_key"]),
            erase_url=_erase_url(row, origin),
            erased=None,
        )

    async def erase(self, request: Request) -> Response:
        """POST /visitors/{anonymousId}/erase: after COMMIT, and a first try to empty the WAL."""
        if not _ends_in_erase(request):
            raise NotFoundError("no such form")
        asked = request.path_params["anonymous_id"]
        filters = read_filters(request.query_params)
        now = self._frame.context.clock()

        def erase_found(conn: Connection) -> tuple[Row, Erased]:
            row = find_visitor(conn, asked, filters)
            # The id is a client's word: facts that do not name this visitor keep what only looks like it.
            return row, forget(conn, row["site"], row["anonymous_id"], now, anybody=True)

        row, erased = await self._frame.context.write(erase_found)
        log.info("erased a visitor", **erased._asdict())
        await self._frame.context.tidy()
        origin = self._frame.origin(request)
        return self._frame.render(request, "erase.html", section="visitors", origin=origin, row=row, erased=erased)


def _ends_in_erase(request: Request) -> bool:
    """Whether `/erase` is a part of the path, and not of an id in it, whose slash is written `%2F`."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return raw.partition(b"?")[0].endswith(_ERASE.encode())


def _erase_url(row: Row, origin: Origin) -> str:
    """The address of the page that asks, and of the form in it."""
    path, _, query = page_url("visitors", row["anonymous_id"], row["site"], origin=origin.address).partition("?")
    return f"{path}{_ERASE}?{query}"


def routes(frame: Frame) -> list[Route]:
    """The routes of these pages."""
    people = People(frame)
    return [
        frame.page("/sessions", people.sessions),
        frame.page("/sessions/{session_id:id}", people.session),
        frame.page("/visitors", people.visitors),
        frame.page("/visitors/{anonymous_id:id}/erase", people.ask_to_erase),
        frame.form("/visitors/{anonymous_id:id}/erase", people.erase),
        frame.page("/visitors/{anonymous_id:id}", people.visitor),
    ]
