"""The shop's pages: whole, tracked, and of this machine only."""

from __future__ import annotations

import re
import socket
import time

import httpx2
import pytest
from starlette.testclient import TestClient

from sidecar.demo.children import HOST, listen, url_of
from sidecar.demo.shop import FIRST_BYTE_S, LAMPS, PAGES, build_shop, serve_shop

SIDECAR, UPSTREAM = "http://127.0.0.1:8787", "http://127.0.0.1:8788"
ADDRESSES = [address for address, _, _ in PAGES]
TAG = f'<script defer src="{SIDECAR}/sidecar.js" data-funnel="demo-shop"></script>'


@pytest.fixture(scope="module")
def shop() -> TestClient:
    return TestClient(build_shop(SIDECAR, UPSTREAM))


@pytest.mark.parametrize("address", [*ADDRESSES, "/catalogue/lund"])
def test_every_page_is_whole_and_tracked(shop: TestClient, address: str) -> None:
    answer = shop.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text.count(TAG) == 1
    titles = re.findall(r"<title>([^<>]{4,80})</title>", answer.text)
    assert len(titles) == 1
    assert titles[0].endswith(" · Lumen &amp; Oak")
    assert f'href="{SIDECAR}/"' in answer.text
    assert f'href="{UPSTREAM}/"' in answer.text


def test_titles_differ(shop: TestClient) -> None:
    titles = {re.findall("<title>(.*)</title>", shop.get(address).text)[0] for address in ADDRESSES}
    assert len(titles) == 6


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_comes_from_elsewhere(shop: TestClient, address: str) -> None:
    """Every address in a page is of the shop itself or of the two sidecars; the shop's own ones exist."""
    text = shop.get(address).text
    assert set(re.findall(r"https?://[^\"'/\s]+", text)) == {SIDECAR, UPSTREAM}
    own = set(re.findall(r'(?:src|href)="(/[^"$]*)"', text))
    assert own
    assert {found: shop.get(found).status_code for found in own} == dict.fromkeys(own, 200)


def test_the_slow_page_is_slow(shop: TestClient) -> None:
    began = time.monotonic()
    shop.get("/stock")
    assert time.monotonic() - began >= FIRST_BYTE_S


@pytest.mark.parametrize("address", ["/lamp/none.svg", "/late/1/none.svg", "/catalogue/none", "/none"])
def test_what_is_not_sold_is_not_found(shop: TestClient, address: str) -> None:
    assert shop.get(address).status_code == 404


def test_pictures_differ(shop: TestClient) -> None:
    pictures = {shop.get(f"/lamp/{lamp.name}.svg").text for lamp in LAMPS}
    assert len(pictures) == 6
    assert all(picture.startswith("<svg ") for picture in pictures)


def test_it_is_served_for_the_length_of_a_block() -> None:
    listener = listen(0)
    url = url_of(listener.getsockname()[1])
    with (
        listener,
        serve_shop(build_shop(SIDECAR, UPSTREAM), listener),
        httpx2.Client(trust_env=False, verify=False) as client,
    ):
        assert client.get(f"{url}/shop.css").headers["content-type"] == "text/css; charset=utf-8"
    with httpx2.Client(trust_env=False, verify=False) as client, pytest.raises(httpx2.ConnectError):
        client.get(f"{url}/shop.css")


def test_a_taken_port_is_left_alone() -> None:
    with listen(0) as taken, listen(taken.getsockname()[1]) as other:
        assert isinstance(other, socket.socket)
        assert other.getsockname()[0] == HOST
        assert other.getsockname()[1] != taken.getsockname()[1]
