"""What every page of the dashboard stands in: templates, stylesheet and script, the viewer's clock, errors, the door.

A module of pages takes a `Frame` and gives routes: `frame.page(path, read)` for what is read, `frame.form(path, act)`
for what a button does. Both stand behind the access rule.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, tzinfo
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from sidecar.canonical import from_iso, to_iso, to_json
from sidecar.errors import SidecarError
from sidecar.model import rate
from sidecar.store.choices import Choices
from sidecar.store.database import Connection, Error
from sidecar.store.figures import METRICS
from sidecar.store.queries import FilterError
from sidecar.store.scope import UNKNOWN
from sidecar.web import format as formats
from sidecar.web.access import SAFE_HEADERS, Guard, SafeHeaders, is_same_origin
from sidecar.web.period import PERIODS, View, read_view, read_zone
from sidecar.web.read import AmbiguousError, Context, explain_failure

FORM_BYTES_MAX = 4096
ZONE_COOKIE = "sidecar_zone"
SECTIONS = (  # of the navigation: name, label, path
    ("overview", "Overview", "/"),
    ("vitals", "Vitals", "/vitals"),
    ("sessions", "Sessions", "/sessions"),
    ("visitors", "Visitors", "/visitors"),
    ("funnels", "Funnels", "/funnels"),
    ("shipping", "Shipping", "/shipping"),
)
# One city a clock, west to east, for the foot of every page; /preferences has them all.
ZONES = (
    *("Pacific/Honolulu", "America/Anchorage", "America/Los_Angeles", "America/Denver", "America/Chicago"),
    *("America/New_York", "America/Halifax", "America/Sao_Paulo", "Atlantic/Azores", "UTC", "Europe/London"),
    *("Europe/Berlin", "Europe/Paris", "Africa/Johannesburg", "Europe/Athens", "Europe/Istanbul", "Africa/Nairobi"),
    *("Asia/Dubai", "Asia/Karachi", "Asia/Kolkata", "Asia/Dhaka", "Asia/Bangkok", "Asia/Singapore", "Asia/Shanghai"),
    *("Asia/Tokyo", "Australia/Brisbane", "Australia/Sydney", "Pacific/Auckland"),
)
FOREIGN_FORM = (
    "This form was not sent from a page of this address. A proxy in front must pass the Host header on unchanged."
)
# A page that refreshes itself may run our one script, and ask this server.
LIVE_POLICY = f"{SAFE_HEADERS['Content-Security-Policy']}; script-src 'self'; connect-src 'self'"

ORIGIN_MAX = 3000  # characters of the address that a page of one session or visitor was reached from

_PLACE = re.compile(r"[0-9]{1,6}")
_FOLDER = Path(__file__).parent


class Asset(NamedTuple):
    """A file that pages ask for; its address changes with its content, so it may be kept for ever."""

    path: str
    content: bytes
    media_type: str

    def answer(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint
        """The file."""
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self.content, 200, headers, self.media_type)


def _load_asset(name: str, media_type: str) -> Asset:
    content = (_FOLDER / "static" / name).read_bytes()
    stem, _, ending = name.rpartition(".")
    return Asset(f"/static/{stem}.{hashlib.sha256(content).hexdigest()[:12]}.{ending}", content, media_type)


def _also(query: str, kept: Mapping[str, str]) -> str:
    """A query of an address with more parameters."""
    more = urlencode(kept)
    return f"{query}{'&' if query else '?'}{more}" if more else query


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
        "ms": formats.format_ms,
        "duration": formats.format_duration,
        "ago": formats.format_ago,
        "exact": formats.format_exact,
        "iso": to_iso,
        "ms_of": from_iso,
        "bytes": formats.format_bytes,
        "short": formats.shorten,
        "path": formats.without_host,
        "source": formats.session_source,
        "device": formats.session_device,
        "short_device": formats.session_short_device,
        "place": formats.session_place,
        "json": to_json,
        "count": "{:,}".format,
        "compact": formats.format_number,
        "of": formats.format_count,
        "money": formats.format_money,
        "percent": formats.format_percent,
        "moment": formats.format_moment,
        "twice": lambda value: (value, value),
        "offered": lambda countries: {**countries, UNKNOWN: "Unknown"},
        "also": _also,
    }
    environment.globals |= {
        "format_vital": formats.format_vital,
        "rate": rate,
        "page_url": formats.page_url,
        "METRICS": METRICS,
        "SECTIONS": SECTIONS,
        "PERIODS": PERIODS,
        "ZONES": ZONES,
    }
    return environment


class Origin(NamedTuple):
    """Which list or overview led to a page of one: its address and its view; None where none is told."""

    address: str | None
    view: View | None


class Frame:
    """The frame of all pages. `style` and `script` are their files."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.style = _load_asset("dashboard.css", "text/css")
        self.script = _load_asset("live.js", "text/javascript")
        self._templates = _load_templates()

    def zone(self, request: Request) -> tuple[tzinfo, str]:
        """The viewer's time zone and its name: of `?tz=`, else of the cookie. Raises FilterError for a wrong `tz`."""
        asked = request.query_params.get("tz")
        zone, name = read_zone(asked or request.cookies.get(ZONE_COOKIE))
        if asked and name != asked:
            raise FilterError("tz", "the name of a time zone like Europe/Paris")
        return zone, name

    def view(self, request: Request) -> View:
        """The period and the filters that a request asks for. Raises FilterError naming a wrong parameter."""
        return read_view(request.query_params, self.context.clock(), self.zone(request)[1])

    def origin(self, request: Request) -> Origin:
        """What `?from=` says: the way back, and the filters that the navigation keeps."""
        address = request.query_params.get("from", "")
        path, _, query = address.partition("?")
        is_ours = path in {target for *_, target in SECTIONS} and safe_path(address) == address
        if not is_ours or len(address) > ORIGIN_MAX:
            return Origin(None, None)
        try:
            asked = {name: values[0] for name, values in parse_qs(query, max_num_fields=30).items()}
            return Origin(address, read_view(asked, self.context.clock(), self.zone(request)[1]))
        except (FilterError, ValueError):
            return Origin(None, None)

    def view_of_links(self, request: Request) -> View | None:
        """The view that a page without figures was asked with: its links keep it."""
        try:
            return self.view(request)
        except FilterError:
            return None

    def render(
        self,
        request: Request | None,
        template: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        section: str | None = None,
        view: View | None = None,
        choices: Choices | None = None,
        kept: Mapping[str, str] | None = None,
        origin: Origin | None = None,
        **values: Any,
    ) -> Response:
        """A page. `section` is marked in the navigation, whose links keep the filters of `view`, or of `origin`.

        With `view` and `choices` (`list_choices(conn)`) the page has the filter bar; its form keeps the parameters in
        `kept` (a page's own, like `sort`).
        """
        zone, zone_name = (UTC, "UTC") if request is None else self._zone_or_utc(request)
        here = "/" if request is None else with_parameters(request, tz=None)
        if origin is not None:
            view = origin.view
            address = origin.address
        else:
            address = here if view is not None and "?" in here else None
        shared = {
            "style_path": self.style.path,
            "script_path": self.script.path,
            "now": self.context.clock(),
            "may_read": request is not None and self.context.access.refusal(request.scope) is None,
            "can_sign_out": self.context.access.has_token,
            "section": section,
            "view": view,
            "choices": choices,
            "kept": dict(kept or {}),
            "query": view.query() if view else "",
            "zone": view.zone if view else zone,
            "zone_name": view.zone_name if view else zone_name,
            "path": "/" if request is None else own_path(request),
            "here": here,
            "origin": address,
        }
        response = HTMLResponse(self._templates.get_template(template).render(shared | values), status, headers)
        asked = request.query_params.get("tz") if request is not None and status == 200 else None
        if request is not None and asked:
            put_zone(response, request, asked)
        return response

    def _zone_or_utc(self, request: Request) -> tuple[tzinfo, str]:
        """As `zone`, for pages that are themselves about what is wrong."""
        try:
            return self.zone(request)
        except FilterError:
            return UTC, "UTC"

    def error(
        self, status: int, line: str, headers: Mapping[str, str] | None = None, request: Request | None = None
    ) -> Response:
        """An error as a page: its status and one line."""
        titles = {400: "That address is not right", 404: "Not found", 503: "Not at the moment"}
        title = titles.get(status, "Something went wrong" if status >= 500 else "Not possible")
        return self.render(request, "message.html", status, headers, title=title, line=line, code=status)

    def refuse(self, request: Request, line: str) -> Response:
        """The answer to a browser that may not read: where there is a token, the form to give it."""
        if not self.context.access.has_token:
            return self.render(request, "message.html", 403, title="Not from here", line=line, code=403)
        wanted = with_parameters(request)
        return self.sign_in_page(request, 403, wanted if request.method in ("GET", "HEAD") else "/", None)

    def sign_in_page(
        self,
        request: Request,
        status: int,
        wanted: str,
        wrong: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """The form to sign in with, which leads to the path `wanted`; `wrong` says what went wrong before."""
        # The line that says how to set the token stands in the template.
        return self.render(request, "sign_in.html", status, headers, wanted=safe_path(wanted), wrong=wrong)

    # routes

    def page(self, path: str, read: Callable[[Connection, Request], Response]) -> Route:
        """A page that is read from one snapshot."""

        def read_one(request: Request) -> Response:
            with self.context.readers.snapshot() as conn:
                return read(conn, request)

        return self.route(path, read_one)

    def route(self, path: str, respond: Callable[[Request], Response]) -> Route:
        """A page that takes its own snapshots; not a coroutine, so that Starlette runs it in a worker thread."""

        def endpoint(request: Request) -> Response:
            try:
                return respond(request)
            except AmbiguousError as error:
                return self.render(request, "choose.html", 300, line=str(error), rows=error.rows)
            except (SidecarError, Error) as error:
                return self.error(*explain_failure(error), request)

        return Route(path, endpoint, methods=["GET"], middleware=self.behind)

    def form(self, path: str, act: Callable[[Request], Awaitable[Response]]) -> Route:
        """What a form posts to; refused where it was not sent from a page of this very host."""

        async def endpoint(request: Request) -> Response:
            if not is_same_origin(request.scope):
                return self.error(403, FOREIGN_FORM, None, request)
            try:
                return await act(request)
            except AmbiguousError as error:
                return self.render(request, "choose.html", 300, line=str(error), rows=error.rows)
            except (SidecarError, Error) as error:
                return self.error(*explain_failure(error), request)

        return Route(path, endpoint, methods=["POST"], middleware=self.behind, max_body_size=FORM_BYTES_MAX)

    @property
    def safe(self) -> list[Middleware]:
        """What stands before every answer; pages hold no secret, so their packed size tells none."""
        return [Middleware(SafeHeaders), Middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)]

    @property
    def behind(self) -> list[Middleware]:
        """What stands before everything that shows or changes what is held."""
        return [*self.safe, Middleware(Guard, access=self.context.access, refuse=self.refuse)]

    def asset_routes(self) -> list[Route]:
        """The stylesheet and the script."""
        return [
            Route(asset.path, asset.answer, methods=["GET"], middleware=self.safe)
            for asset in (self.style, self.script)
        ]


# --- addresses -------------------------------------------------------------------------------------------------------


def safe_path(wanted: str) -> str:
    """A path of this host, else `/`: `//host` and `/\\host` are others, and browsers drop control characters first."""
    is_own = wanted[:1] == "/" and wanted[1:2] not in ("/", "\\") and all("!" <= c <= "~" for c in wanted)
    return wanted if is_own else "/"


def own_path(request: Request) -> str:
    """The path of a request, as it was sent."""
    raw: bytes = request.scope.get("raw_path") or b""
    return raw.partition(b"?")[0].decode("latin-1") or quote(request.scope["path"])


def with_parameters(request: Request, **changes: str | None) -> str:
    """The address of a request with other parameters; None leaves one out."""
    parameters = {name: value for name, value in request.query_params.items() if value} | changes
    query = urlencode({name: value for name, value in parameters.items() if value is not None})
    return f"{own_path(request)}?{query}" if query else own_path(request)


def read_place(text: str | None) -> int:
    """Which page of a table is asked for, from 1 on. Raises FilterError."""
    if not text:
        return 1
    if not _PLACE.fullmatch(text) or int(text) < 1:
        raise FilterError("list", "an integer from 1 on")
    return int(text)


def put_zone(response: Response, request: Request, name: str) -> None:
    """Let the viewer's browser remember a time zone, for a year."""
    secure = request.headers.get("origin", request.url.scheme).startswith("https")
    response.set_cookie(ZONE_COOKIE, name, max_age=365 * 86_400, httponly=True, samesite="lax", secure=secure)
