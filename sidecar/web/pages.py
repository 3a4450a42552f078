"""The dashboard: pages made on the server, from the same figures as the JSON API; no foreign address.

Which page is where: `overview`, `vitals_page`, `funnels` are figures; `people` is sessions and visitors;
`shipping_page` what leaves; `door` the sign-in; `frame` what they all stand in.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response
from starlette.routing import Route

from sidecar.web import door, funnels, overview, people, preferences, shipping_page, vitals_page
from sidecar.web.frame import Frame
from sidecar.web.read import Context


class Pages:
    """All pages. `error` answers for the whole application."""

    def __init__(self, context: Context) -> None:
        self._frame = Frame(context)

    def error(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
        """An error as a page: its status and one line."""
        return self._frame.error(status, line, headers)

    def routes(self) -> list[Route]:
        """The routes of the pages, each behind the access rule; sign-in and assets stand before it."""
        parts = (overview, vitals_page, funnels, people, shipping_page, preferences, door)
        return [route for part in parts for route in part.routes(self._frame)] + self._frame.asset_routes()


def routes(context: Context) -> list[Route]:
    """The routes of the dashboard."""
    return Pages(context).routes()
