"""The funnels: one row each, from where a click leads to the overview of one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.store.choices import list_choices
from sidecar.store.database import Connection
from sidecar.store.figures import CORE, latest_start, list_funnel_figures, passes
from sidecar.web.frame import Frame, read_place, with_parameters

FUNNELS_A_PAGE = 50


class Funnels:
    """`GET /funnels`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def read(self, conn: Connection, request: Request) -> Response:
        """The page; `list` is which fifty of the funnels."""
        view = self._frame.view(request)
        place = read_place(request.query_params.get("list"))
        found = list_funnel_figures(conn, view.scope)
        first = (place - 1) * FUNNELS_A_PAGE
        return self._frame.render(
            request,
            "funnels.html",
            section="funnels",
            view=view,
            choices=list_choices(conn),
            latest=latest_start(conn),
            funnels=[(one, passes(one.vitals)) for one in found[first : first + FUNNELS_A_PAGE]],
            funnels_count=len(found),
            first=first,
            before_url=with_parameters(request, list=str(place - 1) if place > 2 else None) if place > 1 else None,
            next_url=with_parameters(request, list=str(place + 1)) if first + FUNNELS_A_PAGE < len(found) else None,
            has_sites=len({one.site for one in found}) > 1,
            core=CORE,
        )


def routes(frame: Frame) -> list[Route]:
    """The routes of this page."""
    return [frame.page("/funnels", Funnels(frame).read)]
