"""The demo site: a small made-up shop with the tracker on every page, each page with one thing to measure."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from sidecar.demo.errors import DemoError

FUNNEL = "demo-shop"
FIRST_BYTE_S = 0.9  # of the slow page; over 800 ms TTFB needs improvement
LATE_IMAGE_S = 0.2  # times its place: the gallery's pictures come one after the other
START_TIMEOUT_S = 10.0
_FOLDER = Path(__file__).with_name("site")


class Lamp(NamedTuple):
    """A product: price in euro, the rest texts and colours of its picture."""

    name: str
    title: str
    words: str
    price: int
    form: str
    shade: str
    foot: str
    wall: str


LAMPS = (
    Lamp("lund", "Lund", "A cone of pleated paper on oak.", 129, "cone", "#f6c667", "#8a4b20", "#f3e7d3"),
    Lamp("malmo", "Malmö", "A globe of smoked glass.", 189, "globe", "#588b8b", "#4a3428", "#e2ebe6"),
    Lamp("visby", "Visby", "A drum of brick-red linen.", 149, "drum", "#c8553d", "#c9a26b", "#f5e1da"),
    Lamp("kiruna", "Kiruna", "A dome for polar nights.", 219, "dome", "#40497a", "#8a8f98", "#e3e5f1"),
    Lamp("ystad", "Ystad", "A small cone for the bedside.", 89, "cone", "#7a9e5b", "#8a4b20", "#e9f0e0"),
    Lamp("falun", "Falun", "A globe, copper red.", 199, "globe", "#b5532f", "#4a3428", "#f4e4d8"),
)

# (address, name in the navigation, template)
PAGES = (
    ("/", "Home", "home.html"),
    ("/gallery", "Gallery", "gallery.html"),
    ("/configurator", "Configurator", "configurator.html"),
    ("/catalogue", "Catalogue", "catalogue.html"),
    ("/stock", "In stock", "stock.html"),
    ("/checkout", "Checkout", "checkout.html"),
)


def build_shop(sidecar_url: str, upstream_url: str) -> Starlette:
    """The shop as an application; the addresses, without a final slash, go into its tracker tag and its links."""
    templates = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_FOLDER / "shop.css").read_bytes()
    shared = {
        "sidecar": sidecar_url,
        "upstream": upstream_url,
        "funnel": FUNNEL,
        "lamps": LAMPS,
        "lamps_json": json.dumps([lamp._asdict() for lamp in LAMPS], ensure_ascii=False),
        "pages": [(address, name) for address, name, _ in PAGES],
    }
    lamps = {lamp.name: lamp for lamp in LAMPS}

    def page(address: str, template: str) -> Response:
        return HTMLResponse(templates.get_template(template).render(shared, here=address))

    def picture(name: str) -> Response:
        if name not in lamps:
            raise HTTPException(404)
        text = templates.get_template("lamp.svg").render(lamp=lamps[name])
        return Response(text, media_type="image/svg+xml")

    async def plain(request: Request) -> Response:
        address = request.url.path
        return page(address, next(template for known, _, template in PAGES if known == address))

    async def slow(request: Request) -> Response:
        await asyncio.sleep(FIRST_BYTE_S)
        return await plain(request)

    async def view(request: Request) -> Response:
        if request.path_params["name"] not in lamps:
            raise HTTPException(404)
        return page("/catalogue", "catalogue.html")

    async def lamp(request: Request) -> Response:
        return picture(request.path_params["name"])

    async def late(request: Request) -> Response:
        await asyncio.sleep(LATE_IMAGE_S * min(request.path_params["place"], len(LAMPS)))
        answer = picture(request.path_params["name"])
        answer.headers["Cache-Control"] = "no-store"  # it has to be late each time
        return answer

    async def stylesheet(request: Request) -> Response:  # noqa: ARG001 - an endpoint gets one
        return Response(style, media_type="text/css")

    return Starlette(
        routes=[
            *(Route(address, slow if address == "/stock" else plain) for address, _, _ in PAGES),
            Route("/catalogue/{name}", view),
            Route("/lamp/{name}.svg", lamp),
            Route("/late/{place:int}/{name}.svg", late),
            Route("/shop.css", stylesheet),
        ]
    )


@contextmanager
def serve_shop(shop: Starlette, listener: socket.socket) -> Iterator[None]:
    """The shop on a listening socket, in a thread, for the length of the block. Raises DemoError where it fails."""
    server = uvicorn.Server(uvicorn.Config(shop, log_level="error", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="shop", daemon=True)
    thread.start()
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise DemoError("the demo site did not start")
            time.sleep(0.02)
        yield
    finally:
        server.should_exit = True
        thread.join(5)
