"""The funnels: one row each, from where a click leads to the overview of one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.store.choices import list_choices
from sidecar.store.database import Connection
from sidecar.store.figures import CORE, latest_start, list_funnel_figures, passes
from sidecar.web.frame import Frame


class Funnels:
    """`GET /funnels`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def read(self, conn: Connection, request: Request) -> Response:
        """The page."""
        view = self._frame.view(request)
        found = list_funnel_figures(conn, view.scope)
        return self._frame.render(
            request,
            "funnels.html",
            section="funnels",
            view=view,
            choices=list_choices(conn),
            latest=latest_start(conn),
            funnels=[(one, passes(one.vitals)) for one in found],
            has_sites=len({one.site for one in found}) > 1,
            core=CORE,
        )


def routes(frame: Frame) -> list[Route]:
    """The routes of this page."""
    return [frame.page("/funnels", Funnels(frame).read)]
