"""What a viewer chooses: the time zone, kept in a cookie of the viewer's browser."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import parse_qs
from zoneinfo import available_timezones

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from sidecar.store.queries import FilterError
from sidecar.web.frame import Frame, put_zone, safe_path
from sidecar.web.period import read_zone


@lru_cache(maxsize=1)
def list_zones() -> dict[str, list[str]]:
    """All time zones that are known here, by continent."""
    found: dict[str, list[str]] = {"": ["UTC"]}
    for name in sorted(available_timezones()):
        area, _, place = name.partition("/")
        if place and area not in ("Etc", "SystemV", "posix", "right", "US", "Brazil", "Canada", "Chile", "Mexico"):
            found.setdefault(area, []).append(name)
    return found


class Preferences:
    """`GET /preferences` and `POST /preferences`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def read(self, request: Request) -> Response:
        """The form with all time zones; `next` is where it leads back to."""
        after = safe_path(request.query_params.get("next", "/"))
        return self._frame.render(request, "preferences.html", zones=list_zones(), next=after)

    async def keep(self, request: Request) -> Response:
        """`tz` and `next` of a form."""
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
        name = form.get("tz", [""])[0]
        if read_zone(name)[1] != name:
            raise FilterError("tz", "the name of a time zone like Europe/Paris")
        response = RedirectResponse(safe_path(form.get("next", ["/"])[0]), 303)
        put_zone(response, request, name)
        return response


def routes(frame: Frame) -> list[Route]:
    """The routes of these pages."""
    preferences = Preferences(frame)
    return [frame.route("/preferences", preferences.read), frame.form("/preferences", preferences.keep)]
