"""Reads pages as a browser would, for tests: elements, texts, links; and some facts to make pages of."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sidecar.model import Campaign, Client, Fact
from tests.builders import BOT, event, open_dashboard, page_of, vital

MINUTE = 60_000
VOID = {"meta", "link", "input", "br"}


class Reader(HTMLParser):
    """Tags with their attributes, the text in order, and that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.placed: list[tuple[str, tuple[str, ...]]] = []  # each text as it is, and the elements around it
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.placed.append((data, tuple(self._open)))
        if data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def links(self) -> list[str]:
        return [attributes["href"] or "" for tag, attributes in self.tags if tag == "a"]


def get(path: Path, url: str, *, status: int = 200, headers: dict[str, str] | None = None, **given: Any) -> Reader:
    """One page, as a reader of it."""
    with open_dashboard(path, **given) as client:
        answer = client.get(url, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), answer.text
    return Reader(answer.text)


def some_facts() -> list[Fact]:
    """A session with all kinds of facts, a provisional one, and a bot's."""
    client = Client("mobile", "Safari", "17.5", "iOS", "17", 390, 844, None, "FR", "France", None, "Lyon", "192.0.2.0")
    sale = Campaign("news", "email", "autumn", None, None)
    sent: dict[str, Any] = {"visitor": "ada", "client": client}
    return [
        vital("all", "LCP", 2600, at=900, page=page_of("/start?a=1"), **sent),
        vital("all", "INP", 90, at=5_000, **sent),
        vital("all", "CLS", 0.3, at=5_001, **sent),
        vital("all", "TTFB", 0, at=6_000, navigation_type="back-forward-cache", **sent),
        event("all", campaign=sale, referrer="https://www.news.test/x", page=page_of("/start?a=1"), **sent),
        event("all", "purchase", at=65_000, properties={"revenue": 1234.5, "currency": "EUR"}, **sent),
        event(
            "all",
            "user_identified",
            at=1_000,
            properties={"userId": "u-1", "traits": {"name": "Ada L.", "seats": [1, "é"]}},
            clock_skewed=True,
            visitor="ada",
        ),
        vital("early", "LCP", 900, at=-MINUTE),
        event("robot", at=-2 * MINUTE, client=BOT),
    ]
