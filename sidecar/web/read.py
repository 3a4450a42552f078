"""The JSON API: what the sidecar holds, for programs. Parameters in, one query in one snapshot, JSON out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.canonical import from_iso
from sidecar.errors import SidecarError, StoreError, UnavailableError
from sidecar.store.database import Connection, Error
from sidecar.store.documents import read_session, summary, to_line, visitor_object
from sidecar.store.queries import (
    LIMIT_DEFAULT,
    LIMIT_MAX,
    FilterError,
    Filters,
    Listed,
    Row,
    count_overview,
    find_sessions,
    find_visitors,
    list_sessions,
    list_visitors,
    percentile_vitals,
)
from sidecar.store.readers import Readers
from sidecar.web.access import Access, Guard, SafeHeaders

_LIMIT = re.compile(r"[0-9]{1,3}")
_LOST_PLUS = re.compile(r"(T[0-9:.,]+) ([0-9]{2}:?[0-9]{2})")  # `+02:00` in an address, where + is a blank


class _IdConvertor(Convertor[str]):
    """An id in a path: any characters at all, slashes and line breaks included."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _IdConvertor())


class NotFoundError(SidecarError):
    """No session or visitor has this id (HTTP 404)."""


class AmbiguousError(SidecarError):
    """Several sites or funnels have this id (HTTP 300); `rows` are the candidates."""

    def __init__(self, kind: str, rows: list[Row]) -> None:
        super().__init__(f"several {kind}s have this id: choose one with ?site=&funnelId=")
        self.rows = rows


@dataclass(frozen=True)
class Context:
    """What reading needs. `clock` gives ms.

    `read_shipping(conn, now, session_timeout_ms)` is all of /api/shipping; `read_session_shipping(conn, session_key)`
    says of one session where it is on its way upstream. `write` runs one function of a connection in a transaction, and
    returns after its COMMIT; `tidy` sees to it that what was erased goes from the file, too. `tag_funnel` and `tag_key`
    go into the script tag that an empty dashboard shows.
    """

    readers: Readers
    access: Access
    clock: Callable[[], int]
    session_timeout_ms: int
    read_shipping: Callable[[Connection, int, int], Mapping[str, Any]]
    read_session_shipping: Callable[[Connection, int], Mapping[str, Any] | None]
    write: Callable[[Callable[[Connection], Any]], Awaitable[Any]]
    tidy: Callable[[], Awaitable[None]]
    tag_funnel: str = "default"
    tag_key: str | None = None


# --- parameters ------------------------------------------------------------------------------------------------------


def _time(parameters: Mapping[str, str], name: str) -> int | None:
    text = parameters.get(name)
    if not text:
        return None
    try:
        return from_iso(_LOST_PLUS.sub(r"\1+\2", text))
    except (ValueError, OverflowError):
        raise FilterError(name, "an ISO 8601 time like 2026-11-22T07:00:00Z") from None


def read_filters(parameters: Mapping[str, str]) -> Filters:
    """The filters of a query string; '' is missing, other names are ignored. Raises FilterError naming a wrong one."""
    limit = parameters.get("limit") or str(LIMIT_DEFAULT)
    if not _LIMIT.fullmatch(limit) or not 1 <= int(limit) <= LIMIT_MAX:
        raise FilterError("limit", f"an integer from 1 to {LIMIT_MAX}")
    return Filters(
        site=parameters.get("site") or None,
        funnel_id=parameters.get("funnelId") or None,
        since=_time(parameters, "since"),
        until=_time(parameters, "until"),
        limit=int(limit),
        cursor=parameters.get("cursor") or None,
    )


def find_session(conn: Connection, session_id: str, filters: Filters) -> Row:
    """The one session with this id. Raises NotFoundError, or AmbiguousError with the candidates."""
    return _only("session", find_sessions(conn, session_id, filters.site, filters.funnel_id))


def find_visitor(conn: Connection, anonymous_id: str, filters: Filters) -> Row:
    """The one visitor with this id. Raises NotFoundError, or AmbiguousError with the candidates."""
    return _only("visitor", find_visitors(conn, anonymous_id, filters.site, filters.funnel_id))


def _only(kind: str, found: list[Row]) -> Row:
    if not found:
        raise NotFoundError(f"no such {kind}")
    if len(found) > 1:
        raise AmbiguousError(kind, found)
    return found[0]


def explain_failure(error: Exception) -> tuple[int, str, dict[str, str]]:
    """(HTTP status, one line, headers) for what a reading may raise; anything else is raised again."""
    match error:
        case FilterError():
            return 400, str(error), {}
        case NotFoundError():
            return 404, str(error), {}
        case AmbiguousError():
            return 300, str(error), {}
        case UnavailableError():
            return 503, str(error), {"Retry-After": str(error.retry_after_s)}
        case StoreError() | Error():
            # The text may hold a path of this machine, which is for the log and not for a client.
            return 503, "the database cannot be read at the moment", {"Retry-After": "5"}
        case _:
            raise error


# --- answers ---------------------------------------------------------------------------------------------------------


def answer(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(to_line(dict(content)), status, headers, "application/json")


def refuse(request: Request, line: str) -> Response:  # noqa: ARG001 - what `Guard` calls
    """The answer to a program that may not read."""
    return answer({"error": line}, 403)


class _Api:
    def __init__(self, context: Context) -> None:
        self._context = context

    def overview(self, conn: Connection, request: Request) -> Mapping[str, Any]:
        filters = read_filters(request.query_params)
        return count_overview(conn, filters, self._context.clock(), self._context.session_timeout_ms)

    def vitals(self, conn: Connection, request: Request) -> Mapping[str, Any]:
        return {"metrics": percentile_vitals(conn, read_filters(request.query_params))}

    def sessions(self, conn: Connection, request: Request) -> Mapping[str, Any]:
        return self._list(list_sessions(conn, read_filters(request.query_params)))

    def session(self, conn: Connection, request: Request) -> Mapping[str, Any]:
        row = find_session(conn, request.path_params["session_id"], read_filters(request.query_params))
        return read_session(conn, row["session_key"], self._context.clock(), self._context.session_timeout_ms)

    def visitors(self, conn: Connection, request: Request) -> Mapping[str, Any]:
        listed = list_visitors(conn, read_filters(request.query_params))
        return {"items": [visitor_object(row) for row in listed.rows], "nextCursor": listed.next_cursor}

    def visitor(self, conn: Connection, request: Request) -> Mapping[str, Any]:
        filters = read_filters(request.query_params)
        row = find_visitor(conn, request.path_params["anonymous_id"], filters)
        listed = self._list(list_sessions(conn, filters, visitor_key=row["visitor_key"]))
        return {**(visitor_object(row) or {}), "sessions": listed["items"], "nextCursor": listed["nextCursor"]}

    def shipping(self, conn: Connection, request: Request) -> Mapping[str, Any]:  # noqa: ARG002 - as the others
        return self._context.read_shipping(conn, self._context.clock(), self._context.session_timeout_ms)

    def _list(self, listed: Listed) -> dict[str, Any]:
        return {"items": self._summaries(listed.rows), "nextCursor": listed.next_cursor}

    def _summaries(self, rows: list[Row]) -> list[dict[str, Any]]:
        now = self._context.clock()
        return [summary(row, now, self._context.session_timeout_ms) for row in rows]

    def _candidates(self, rows: list[Row]) -> list[Mapping[str, Any]]:
        """What an ambiguous id may mean; a visitor does not say its site by itself."""
        if "session_id" in rows[0]:
            return [*self._summaries(rows)]
        return [{"site": row["site"], **(visitor_object(row) or {})} for row in rows]

    def endpoint(self, read: Callable[[Connection, Request], Mapping[str, Any]]) -> Callable[[Request], Response]:
        """One reading as an endpoint; not a coroutine, so that Starlette runs it in a worker thread."""

        def respond(request: Request) -> Response:
            try:
                with self._context.readers.snapshot() as conn:
                    content = read(conn, request)
            except (SidecarError, Error) as error:
                status, line, headers = explain_failure(error)
                more = {}
                if isinstance(error, AmbiguousError):
                    more = {"items": self._candidates(error.rows), "nextCursor": None}
                return answer({"error": line, **more}, status, headers)
            return answer(content)

        return respond


def routes(context: Context) -> list[Route]:
    """The routes of the JSON API, each behind the access rule."""
    api = _Api(context)
    behind = [Middleware(SafeHeaders), Middleware(Guard, access=context.access, refuse=refuse)]
    readings = {
        "/api/overview": api.overview,
        "/api/vitals": api.vitals,
        "/api/sessions": api.sessions,
        "/api/sessions/{session_id:id}": api.session,
        "/api/visitors": api.visitors,
        "/api/visitors/{anonymous_id:id}": api.visitor,
        "/api/shipping": api.shipping,
    }
    return [Route(path, api.endpoint(read), methods=["GET"], middleware=behind) for path, read in readings.items()]
