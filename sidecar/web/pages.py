"""The dashboard: pages made on the server, from the same queries as the JSON API. No script, no foreign address."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from sidecar.canonical import from_iso, to_iso, to_json
from sidecar.errors import SidecarError
from sidecar.model import PLACEHOLDER_TTFB, Client, EventFact, Fact, VitalFact, rate
from sidecar.store.arrivals import read_arrivals
from sidecar.store.database import Connection, Error
from sidecar.store.documents import read_facts, summary
from sidecar.store.explain import count_facts, explain, group_left_out, value_text
from sidecar.store.facts import FactOwner
from sidecar.store.queries import (
    PERCENTILE_METRICS,
    FilterError,
    Filters,
    Listed,
    Row,
    count_overview,
    has_sessions,
    list_funnels,
    list_sessions,
    percentile_vitals,
)
from sidecar.web.access import COOKIE_LIFETIME_S, Guard, SafeHeaders, is_same_origin
from sidecar.web.read import AmbiguousError, Context, explain_failure, find_session, find_visitor, read_filters

FACTS_MAX = 500  # on one page of a session
FUNNELS_MAX = 100  # offered by name; where there are more, the id is typed
FORM_BYTES_MAX = 4096

_FOLDER = Path(__file__).parent
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
# A path of this host: `//host` and `/\host` are others, and browsers drop control characters before they look.
_OWN_PATH = re.compile(r"/(?![/\\])[!-~]*")
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,12}Z")
_OFFSET = re.compile(r"[0-9]{1,5}")

# --- formats for people ----------------------------------------------------------------------------------------------


def format_ms(value: float) -> str:
    """`340 ms`, `1.2 s`, `2 min 5 s` of milliseconds."""
    if round(value) < 1000:
        return f"{value:.1f} ms" if 0 < value < 10 and value != round(value) else f"{round(value)} ms"
    return f"{value / 1000:.1f} s" if value < 59_950 else format_duration(value / 1000)


def format_duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `1 h 5 min` of seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60} s" if hours == 0 else f"{hours} h {minutes % 60} min"


def format_vital(metric: str, value: float) -> str:
    """A value with its unit: CLS has none."""
    if metric != "CLS":
        return format_ms(value)
    return f"{value:.2f}" if value == 0 or value >= 0.005 else f"{value:.3f}" if value >= 0.0005 else "<0.001"


def format_ago(at: int, now: int) -> str:
    """`3 min ago` of ms; a date from 30 days on. A client's clock may be ahead of `now`."""
    seconds = (now - at) // 1000
    if seconds < 0:
        return "just now" if seconds > -60 else f"in {format_duration(-seconds)}"
    for limit, size, unit in ((10, 0, ""), (60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size} {unit} ago" if size else "just now"
    days = seconds // 86_400
    return f"{days} day{'s' if days > 1 else ''} ago" if days < 30 else (to_iso(at) or "")[:10]


def format_exact(at: int) -> str:
    """`2026-11-22 07:00:00.000` of ms, UTC."""
    return (to_iso(at) or "").replace("T", " ").rstrip("Z")


def shorten(text: str, most: int = 60) -> str:
    """A text cut to its first characters; a table has no room for 2,048."""
    return text if len(text) <= most else text[: most - 1] + "…"


def without_host(url: str) -> str:
    """What stands after the host of an address."""
    return re.sub(r"^[a-z][a-z0-9+.-]*://[^/?#]*", "", url, count=1, flags=re.IGNORECASE) or "/"


def session_source(row: Row) -> str:
    """Where a session came from: its first campaign, else the referrer's host, else `direct`."""
    campaign = [row[name] for name in ("first_source", "first_medium", "first_campaign") if row[name]]
    if campaign:
        return " / ".join(campaign)
    if row["first_referrer"]:
        return re.sub(r"^[a-z][a-z0-9+.-]*://(?:www\.)?([^/?#]*).*", r"\1", row["first_referrer"], flags=re.I | re.S)
    return "direct"


def session_device(row: Row) -> str:
    """`Chrome 131, Windows 10, desktop`, as far as it is known."""
    browser = " ".join(row[name] for name in ("browser_name", "browser_version") if row[name])
    system = " ".join(row[name] for name in ("os_name", "os_version") if row[name])
    return ", ".join(part for part in (browser, system, row["device_type"]) if part)


def session_short_device(row: Row) -> str:
    """`Chrome, Windows`: what a list has room for."""
    return ", ".join(row[name] for name in ("browser_name", "os_name") if row[name]) or row["device_type"] or ""


def session_place(row: Row) -> str:
    """`Lyon, Auvergne, France`, as far as it is known."""
    return ", ".join(part for part in (row["city"], row["region"], row["country_name"] or row["country_code"]) if part)


def describe(mapping: Mapping[str, Any]) -> list[tuple[str, str, int | None]]:
    """(label, text, time in ms or None) of what a mapping says; nothing of what is null or no scalar."""
    described = []
    for name, value in mapping.items():
        if value is None or isinstance(value, dict | list):
            continue
        label = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name).capitalize()
        at = from_iso(value) if isinstance(value, str) and _ISO.fullmatch(value) else None
        described.append((label, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value), at))
    return described


def page_url(kind: str, identity: str, site: str, funnel_id: str | None = None) -> str:
    """The address of the page of one session or visitor; always with its site, so that it means one."""
    query = {"site": site} | ({"funnelId": funnel_id} if funnel_id is not None else {})
    return f"/{kind}/{quote(identity, safe='')}?{urlencode(query)}"


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


# --- pages -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _load_templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "ms": format_ms,
        "duration": format_duration,
        "ago": format_ago,
        "exact": format_exact,
        "iso": to_iso,
        "short": shorten,
        "path": without_host,
        "source": session_source,
        "device": session_device,
        "short_device": session_short_device,
        "place": session_place,
        "json": to_json,
        "count": "{:,}".format,
    }
    environment.globals |= {
        "format_vital": format_vital,
        "rate": rate,
        "page_url": page_url,
        "METRICS": PERCENTILE_METRICS,
    }
    return environment


class Pages:
    """The pages, their stylesheet and the sign-in. `error` answers for the whole application."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._templates = _load_templates()
        self._style = (_FOLDER / "static" / "dashboard.css").read_bytes()
        self._style_path = f"/static/dashboard.{hashlib.sha256(self._style).hexdigest()[:12]}.css"

    def _render(
        self, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
    ) -> Response:
        shared = {
            "style_path": self._style_path,
            "now": self._context.clock(),
            "can_sign_out": self._context.access.has_token,
        }
        return HTMLResponse(self._templates.get_template(template).render(shared | values), status, headers)

    def error(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
        """An error as a page: its status and one line."""
        titles = {400: "That address is not right", 404: "Not found", 503: "Not at the moment"}
        title = titles.get(status, "Something went wrong" if status >= 500 else "Not possible")
        return self._render("message.html", status, headers, title=title, line=line, code=status)

    # readings, each of a connection

    def sessions(self, conn: Connection, request: Request) -> Response:
        filters = read_filters(request.query_params)
        now = self._context.clock()
        shipping = self._context.read_shipping(conn, now, self._context.session_timeout_ms)
        if not has_sessions(conn):
            return self._render("empty.html", tag=self._script_tag(request), shipping=shipping)
        listed = list_sessions(conn, filters)
        funnels = list_funnels(conn, most=FUNNELS_MAX + 1)
        return self._render(
            "sessions.html",
            listed=listed,
            overview=count_overview(conn, filters, now, self._context.session_timeout_ms),
            vitals=percentile_vitals(conn, filters),
            shipping=shipping,
            given={name: request.query_params.get(name, "") for name in ("site", "funnelId", "since", "until")},
            funnels=None if len(funnels) > FUNNELS_MAX else sorted({funnel_id for _, funnel_id in funnels}),
            sites=None if len(funnels) > FUNNELS_MAX else sorted({site for site, _ in funnels}),
            is_filtered=filters[:4] != Filters()[:4],
            is_later=filters.cursor is not None,
            next_url=_next_url(request, listed),
            first_url=_with_parameters(request, cursor=None),
        )

    def session(self, conn: Connection, request: Request) -> Response:
        row = find_session(conn, request.path_params["session_id"], read_filters(request.query_params))
        offset_text = request.query_params.get("facts") or "0"
        if not _OFFSET.fullmatch(offset_text):
            raise FilterError("facts", "the number of facts to skip")
        offset = int(offset_text)
        facts = read_facts(conn, row["session_key"], FactOwner(row["site"], row["funnel_id"], row["session_id"]))
        clients: dict[Client, int] = {}
        entries = [fact_entry(fact, row["started_at"], clients) for fact in facts]
        later = offset + FACTS_MAX
        shipping = self._context.read_session_shipping(conn, row["session_key"])
        return self._render(
            "session.html",
            row=row,
            entries=entries[offset:later],
            entries_count=len(entries),
            offset=offset,
            explained=_tell(facts, summary(row, self._context.clock(), self._context.session_timeout_ms)),
            arrivals=read_arrivals(conn, row["session_key"]),
            vitals_count={
                m: sum(isinstance(f, VitalFact) and f.metric == m for f in facts) for m in PERCENTILE_METRICS
            },
            next_url=_with_parameters(request, facts=str(later)) if later < len(entries) else None,
            first_url=_with_parameters(request, facts=None),
            shipping=shipping,
            # Revisions are for programs: `shipping` says in a word what they mean.
            shipping_parts=describe({k: v for k, v in (shipping or {}).items() if not k.endswith("Revision")}),
        )

    def visitor(self, conn: Connection, request: Request) -> Response:
        filters = read_filters(request.query_params)
        row = find_visitor(conn, request.path_params["anonymous_id"], filters)
        listed = list_sessions(conn, filters, visitor_key=row["visitor_key"])
        return self._render(
            "visitor.html",
            row=row,
            traits=json.loads(row["traits"] or "{}"),
            listed=listed,
            is_later=filters.cursor is not None,
            next_url=_next_url(request, listed),
            first_url=_with_parameters(request, cursor=None),
        )

    # endpoints

    def endpoint(self, read: Callable[[Connection, Request], Response]) -> Callable[[Request], Response]:
        """One reading as an endpoint; not a coroutine, so that Starlette runs it in a worker thread."""

        def respond(request: Request) -> Response:
            try:
                with self._context.readers.snapshot() as conn:
                    return read(conn, request)
            except AmbiguousError as error:
                return self._render("choose.html", 300, line=str(error), rows=error.rows)
            except (SidecarError, Error) as error:
                return self.error(*explain_failure(error))

        return respond

    def refuse(self, request: Request, line: str) -> Response:
        """The answer to a browser that may not read: where there is a token, the form to give it."""
        if not self._context.access.has_token:
            return self._render("message.html", 403, title="Not from here", line=line, code=403)
        path = request.scope.get("raw_path", b"").decode("latin-1") or quote(request.url.path)
        wanted = f"{path}?{request.url.query}" if request.url.query else path
        return self._sign_in_page(403, wanted if request.method in ("GET", "HEAD") else "/", None)

    def _sign_in_page(
        self, status: int, wanted: str, wrong: str | None, headers: Mapping[str, str] | None = None
    ) -> Response:
        # The line that says how to set the token stands in the template.
        return self._render("sign_in.html", status, headers, wanted=_own_path(wanted), wrong=wrong)

    async def sign_in_form(self, request: Request) -> Response:
        """GET /sign-in."""
        if self._context.access.refusal(request.scope) is None:
            return RedirectResponse(_own_path(request.query_params.get("next", "/")), 303)
        if not self._context.access.has_token:
            return self.refuse(request, self._context.access.refusal(request.scope) or "")
        return self._sign_in_page(200, request.query_params.get("next", "/"), None)

    async def sign_in(self, request: Request) -> Response:
        """POST /sign-in: `token` and `next` of a form. The cookie does not hold the token, only a proof of it."""
        access = self._context.access
        if not access.has_token:
            return self.refuse(request, "There is no token to sign in with: set SIDECAR_DASHBOARD_TOKEN.")
        if not is_same_origin(request.scope):
            return self.error(403, _FOREIGN_FORM)
        wait_s = access.wait_s(request.scope)
        if wait_s:
            line = f"Too many attempts from this address. Try again in {wait_s} s."
            return self._sign_in_page(429, "/", line, {"Retry-After": str(wait_s)})
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
        wanted = form.get("next", ["/"])[0]
        if not access.is_token(form.get("token", [""])[0]):
            return self._sign_in_page(403, wanted, "That is not the token.")
        response = RedirectResponse(_own_path(wanted), 303)
        response.set_cookie(
            access.cookie_name,
            access.make_cookie(),
            max_age=COOKIE_LIFETIME_S,
            httponly=True,
            samesite="strict",
            secure=request.headers["origin"].startswith("https://"),  # true behind a proxy that ends TLS, too
        )
        return response

    async def sign_out(self, request: Request) -> Response:
        """POST /sign-out: the browser forgets its cookie."""
        if not is_same_origin(request.scope):
            return self.error(403, _FOREIGN_FORM)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(self._context.access.cookie_name, httponly=True, samesite="strict")
        return response

    async def style(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint
        """The stylesheet: its address changes with its content, so it may be kept for ever."""
        return Response(self._style, 200, {"Cache-Control": "public, max-age=31536000, immutable"}, "text/css")

    def _script_tag(self, request: Request) -> str:
        """What a site has to put into its pages, with the address that this request came to."""
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            name, port = request.scope.get("server") or ("127.0.0.1", 8787)
            host = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        said = request.headers.get("x-forwarded-proto", "")  # shown to who is signed in, trusted for nothing
        scheme = said if said in ("http", "https") else request.url.scheme
        attributes = {"data-funnel": self._context.tag_funnel}
        if self._context.tag_key is not None:
            attributes["data-key"] = self._context.tag_key
        said_attributes = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
        return f'<script defer src="{scheme}://{host}/sidecar.js" {said_attributes}></script>'

    def routes(self) -> list[Route]:
        """The routes of the pages, each behind the access rule; sign-in and stylesheet stand before it."""
        safe = [Middleware(SafeHeaders)]
        behind = [*safe, Middleware(Guard, access=self._context.access, refuse=self.refuse)]
        return [
            Route("/", self.endpoint(self.sessions), methods=["GET"], middleware=behind),
            Route("/sessions/{session_id:id}", self.endpoint(self.session), methods=["GET"], middleware=behind),
            Route("/visitors/{anonymous_id:id}", self.endpoint(self.visitor), methods=["GET"], middleware=behind),
            Route("/sign-in", self.sign_in_form, methods=["GET"], middleware=safe),
            Route("/sign-in", self.sign_in, methods=["POST"], middleware=safe, max_body_size=FORM_BYTES_MAX),
            Route("/sign-out", self.sign_out, methods=["POST"], middleware=safe, max_body_size=FORM_BYTES_MAX),
            Route(self._style_path, self.style, methods=["GET"], middleware=safe),
        ]


_FOREIGN_FORM = (
    "This form was not sent from a page of this address. A proxy in front must pass the Host header on unchanged."
)


def _own_path(wanted: str) -> str:
    return wanted if _OWN_PATH.fullmatch(wanted) else "/"


def _with_parameters(request: Request, **changes: str | None) -> str:
    """The address of this page with other parameters; None leaves one out."""
    parameters = {name: value for name, value in request.query_params.items() if value} | changes
    query = urlencode({name: value for name, value in parameters.items() if value is not None})
    path = (
        quote(request.scope["path"]) if "raw_path" not in request.scope else request.scope["raw_path"].decode("latin-1")
    )
    return f"{path}?{query}" if query else path


def _next_url(request: Request, listed: Listed) -> str | None:
    return None if listed.next_cursor is None else _with_parameters(request, cursor=listed.next_cursor)


def routes(context: Context) -> list[Route]:
    """The routes of the dashboard."""
    return Pages(context).routes()
