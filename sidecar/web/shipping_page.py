"""The page of shipping: where finished sessions go, what waits, and what to do with what was refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from sidecar.errors import SidecarError
from sidecar.store.database import Connection
from sidecar.store.outbox import discard, requeue, requeue_all, requeue_tombstones
from sidecar.store.queries import FilterError
from sidecar.store.shipping import list_parked, list_refused, read_parked
from sidecar.web.frame import Frame
from sidecar.web.read import NotFoundError

PATH = "/shipping"
SHOWN_MAX = 100  # parked sessions, and refused erasures
REQUEUED_MAX = 500  # a transaction: beacons get in between
ALL = "all"

_ID = re.compile(r"(t?)([0-9]{1,18})")
_DONE = re.compile(r"(requeued|discarded)-([0-9]{1,9})")


class ShippingPage:
    """The page and its forms, in a frame."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def show(self, conn: Connection, request: Request) -> Response:
        """GET /shipping."""
        context = self._frame.context
        shipping = context.read_shipping(conn, context.clock(), context.session_timeout_ms)
        done = _DONE.fullmatch(request.query_params.get("done", ""))
        return self._frame.render(
            request,
            "shipping.html",
            section="shipping",
            view=self._frame.view_of_links(request),
            shipping=shipping,
            sentence=_without_state(shipping["sentence"]),
            parked=list_parked(conn, most=SHOWN_MAX),
            refused=list_refused(conn, most=SHOWN_MAX),
            done=(done[1], int(done[2])) if done else None,
        )

    def ask_to_discard(self, conn: Connection, request: Request) -> Response:
        """GET /shipping/discard?id=: what giving up means. Nothing is given up by looking."""
        key = _read_key(request.query_params.get("id", ""))
        try:
            found, _ = read_parked(conn, key, self._frame.context.clock(), self._frame.context.session_timeout_ms)
        except LookupError:
            raise _not_parked() from None
        if found["state"] != "parked":
            raise _not_parked()
        return self._frame.render(request, "discard.html", section="shipping", found=found)

    async def requeue(self, request: Request) -> Response:
        """POST /shipping/requeue: `id` of one, or `all`."""
        asked = await _read_id(request)
        if asked == ALL:
            return _say_done("requeued", await self._requeue_all())
        match = _ID.fullmatch(asked)
        if match is None:
            raise FilterError("id", "one of the list of what is parked, or `all`")
        key = int(match[2])
        act: Callable[[Connection], object] = (
            (lambda conn: requeue_tombstones(conn, key)) if match[1] else (lambda conn: requeue(conn, key))
        )
        if not await self._frame.context.write(act):
            raise _not_parked()
        return _say_done("requeued", 1)

    async def _requeue_all(self) -> int:
        before = self._frame.context.clock()
        count, done_last = 0, REQUEUED_MAX
        while done_last == REQUEUED_MAX:
            done_last = await self._frame.context.write(
                lambda conn: requeue_all(conn, before=before, most=REQUEUED_MAX)
            )
            count += done_last
        told: int = await self._frame.context.write(requeue_tombstones)
        return count + told

    async def discard(self, request: Request) -> Response:
        """POST /shipping/discard: `id` of one."""
        key, now = _read_key(await _read_id(request)), self._frame.context.clock()
        if not await self._frame.context.write(lambda conn: discard(conn, key, now)):
            raise _not_parked()
        return _say_done("discarded", 1)


def _without_state(sentence: str) -> str:
    """`Nothing waiting, ...` of `ready: nothing waiting, ...`: the page says the state by itself."""
    said = sentence.partition(": ")[2] or sentence
    return said[:1].upper() + said[1:]


def _not_parked() -> SidecarError:
    return NotFoundError("nothing parked has this id: it was sent again, given up or erased meanwhile")


def _read_key(text: str) -> int:
    match = _ID.fullmatch(text)
    if match is None or match[1]:
        raise FilterError("id", "that of a parked session; an erasure cannot be given up")
    return int(match[2])


async def _read_id(request: Request) -> str:
    form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    return form.get("id", [""])[0]


def _say_done(word: str, count: int) -> Response:
    """Back to the page, which says it: loading that again does nothing again."""
    return RedirectResponse(f"{PATH}?{urlencode({'done': f'{word}-{count}'})}", 303)


def routes(frame: Frame) -> list[Route]:
    """The routes of this page."""
    shipping = ShippingPage(frame)
    return [
        frame.page(PATH, shipping.show),
        frame.page(f"{PATH}/discard", shipping.ask_to_discard),
        frame.form(f"{PATH}/discard", shipping.discard),
        frame.form(f"{PATH}/requeue", shipping.requeue),
    ]
