"""Whatever a client sends stays text: on every page that can be reached, and in the exported CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlencode

import pytest

from sidecar.model import Campaign, Client, Fact, Page
from sidecar.store.shipping import read_session_shipping, read_shipping
from tests.builders import START, event, open_dashboard, record_facts, vital
from tests.servers import sidecar
from tests.web.reader import MINUTE, Reader

SIGN = "zq7"  # stands in every hostile text, so that each can be found again
ATTACKS = (
    "</title></style></script><script>alert(1)</script>",
    "</bdi></a></td></table><b onclick=alert(1)>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<!--",
    "]]>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "`${alert(1)}`",
    "javascript:alert(1)//",
    "{{ 7*191 }}{% raw %}{# x #}",
    "&lt;b&gt;&amp;quot;&#34;",
    "\u202e\u2066\u2069\u202d",
    "a\x00b\x07\x1b[31m",
    "line\r\nSet-Cookie: a=b",
    "//evil.test/../100%/x",
    "../../etc?x=1#y",
    "W" * 1_990,
)
FORMULAS = ("=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "a\r=1", "a,\n=1")
# What our templates are made of. Anything else would have come out of a text.
TAGS = {
    *("html", "head", "meta", "title", "link", "script", "body", "header", "nav", "main", "footer", "section", "div"),
    *("h1", "h2", "h3", "p", "a", "span", "small", "strong", "em", "code", "pre", "bdi", "abbr", "time", "data"),
    *("ul", "ol", "li", "dl", "dt", "dd", "details", "summary", "form", "label", "input", "select", "option", "button"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "colgroup", "col", "figure", "figcaption", "datalist"),
    *("svg", "g", "path", "rect", "line", "polyline", "polygon", "circle", "text", "tspan", "optgroup", "fieldset"),
    *("legend", "br", "hr", "desc", "clippath", "defs"),
}
VALUES = {"title", "href", "value", "action", "aria-label", "content", "placeholder", "data-live"}  # may quote a text
FREE = ("q", "site", "funnelId", "page", "device", "country")  # parameters that take any text
STRICT = ("sort", "cursor", "period", "tz", "since")  # and those that refuse it
PLACES = {"bdi", "title", "option", "text", "desc"}  # where a text may stand: what holds no element, or isolates it


def facts_of(text: str, number: int) -> list[Fact]:
    """A session and a visitor in which every text is the attack."""
    five: Any = [text] * 5
    client = Client(*five, None, None, None, *five)  # type: ignore[call-arg]  # a list says nothing of its length
    page = Page(text if number % 2 else f"https://shop.test/{text}", f"/{text}" if number % 3 else text, text)
    sent: dict[str, Any] = {"visitor": text, "client": client, "page": page, "funnel_id": text}
    traits = {"name": text, "email": text, text: {text: [text]}}
    return [
        event(text, text, properties={text: text}, referrer=text, campaign=Campaign(*[text] * 5), **sent),
        event(text, "page_view", at=1, **sent),
        event(text, "user_identified", at=2, properties={"userId": text, "traits": traits}, **sent),
        event(text, "purchase", at=3, properties={"conversionType": text, "currency": text, "revenue": 1}, **sent),
        *(vital(text, metric, 1, fact_id=text, at=4, navigation_type=None, **sent) for metric in ("LCP", "INP", "CLS")),
        event(f"{text}-bot", client=Client(bot=text), site=text, page=page),
    ]


def hostile_text(attack: str, number: int) -> str:
    return f"{attack}{SIGN}{number}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of nothing else. Recorded twice, so that there are notes of what was not taken."""
    texts = [hostile_text(attack, number) for number, attack in enumerate((*ATTACKS, *FORMULAS))]
    facts = [fact for number, text in enumerate(texts) for fact in facts_of(text, number)]
    path = record_facts(tmp_path_factory.mktemp("hostile") / "sidecar.db", facts)
    return record_facts(path, facts, now=START + MINUTE)


def check(html: str, url: str) -> Reader:
    """A page whose elements and attributes are all ours."""
    page = Reader(html)
    for tag, attributes in page.tags:
        assert tag in TAGS, (url, tag)
        for name, value in attributes.items():
            assert not name.startswith("on"), (url, tag, name)
            assert name not in ("style", "srcdoc", "formaction", "xlink:href"), (url, tag, name)
            assert SIGN not in name, (url, tag, name)
            if SIGN in (value or ""):
                assert name in VALUES, (url, tag, name, value)
            if name in ("href", "action", "src"):
                own = (value or "").startswith(("/", "#", "data:image/svg+xml,")) and not (value or "").startswith("//")
                assert own, (url, tag, name, value)
        if tag == "script":
            assert attributes.get("src", "").startswith("/static/"), (url, attributes)  # type: ignore[union-attr]
    for text, around in page.placed:
        if SIGN in text:
            assert PLACES & set(around), (url, around, text)
        if around[-1:] == ("script",):
            assert not text.strip(), url
    assert "1337" not in page.text, url  # 7 * 191
    return page


def test_every_page_that_can_be_reached(path: Path) -> None:
    """From the sections on, link by link: all sessions and visitors, and one of each other kind of address."""
    real: dict[str, Any] = {"read_shipping": read_shipping, "read_session_shipping": read_session_shipping}
    waiting = ["/", "/vitals", "/sessions", "/visitors", "/funnels", "/shipping", "/preferences", "/sign-in"]
    for number, attack in enumerate((*ATTACKS[:-1], *FORMULAS)):
        text = attack + SIGN
        waiting.append("/sessions?" + urlencode(dict.fromkeys(FREE, text)))
        waiting.append("/visitors?" + urlencode({STRICT[number % len(STRICT)]: text}))
        waiting.append("/shipping?" + urlencode({"done": text}))
    first = {*waiting}
    seen: dict[str, int] = {}
    kinds: dict[str, int] = {}
    with open_dashboard(path, now=START + 2 * MINUTE, **real) as client:
        while waiting:
            url = waiting.pop(0)
            parts = url.partition("?")[0].split("/")
            names = (part.partition("=")[0] for part in url.partition("?")[2].split("&"))
            kind = " ".join([parts[1], str(len(parts)), *parts[3:], *sorted(names)])
            is_one = len(parts) == 3 and parts[1] in ("sessions", "visitors")  # there are a few dozen of each
            if url in seen or (url not in first and kinds.get(kind, 0) >= (60 if is_one else 1)):
                continue
            kinds[kind] = kinds.get(kind, 0) + 1
            answer = client.get(url)
            seen[url] = answer.status_code
            assert answer.status_code in (200, 303, 400), (url, answer.status_code)
            assert "set-cookie" not in answer.headers or "tz=" in url, url
            if answer.status_code != 303:
                page = check(answer.text, url)
                waiting += [link for link in page.links() if link.startswith("/") and link not in seen]
    for kind in ("/sessions/", "/visitors/"):
        opened = [unquote_plus(url) for url in seen if url.startswith(kind) and "/erase" not in url]
        assert all(any(SIGN + str(number) in url for url in opened) for number in range(len(ATTACKS))), kind
    assert sum(SIGN in url for url in seen) > 150
    assert any("/erase?" in url for url in seen)


def test_ambiguous_ids_and_refusals(path: Path) -> None:
    """The pages before the door, and those of errors."""
    with open_dashboard(path, now=START + MINUTE) as client:
        check(client.get("/nothing/" + SIGN + "%3Cb%3E").text or "<p></p>", "404")
    with open_dashboard(path, token="s3cret", peer="192.0.2.1") as client:
        for number, attack in enumerate(ATTACKS):
            text = hostile_text(attack, number)
            answer = client.get("/sessions", params={"q": text})
            assert answer.status_code == 403
            check(answer.text, text)
            form = urlencode({"token": text, "next": text})
            headers = {"Origin": "http://127.0.0.1:8787", "Content-Type": "application/x-www-form-urlencoded"}
            check(client.post("/sign-in", headers=headers, content=form).text, text)


def test_the_exported_csv_holds_no_formula(path: Path) -> None:
    """Every cell reads back as it was, or with a `'` before what a spreadsheet would run."""
    done = sidecar("export", "--format", "csv", DATABASE=str(path))
    assert done.returncode == 0, done.stderr
    head, *rows = csv.reader(io.StringIO(done.stdout.decode(), newline=""))
    assert len(rows) == 2 * len((*ATTACKS, *FORMULAS))
    found = {row[head.index("sessionId")] for row in rows}
    for row in rows:
        assert len(row) == len(head)
        for cell in row:
            assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
            assert not cell.startswith("-") or cell[1:].replace(".", "").isdigit(), cell
    for number, attack in enumerate((*ATTACKS, *FORMULAS)):
        text = hostile_text(attack, number).replace("\0", "\ufffd")  # at a NUL, many readers of CSV end
        assert (f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text) in found
