"""What all pages have in common: errors, the frame, what they ask for, and who may read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sidecar.store.shipping import read_session_shipping, read_shipping
from sidecar.web import pages
from tests.builders import START, event, open_dashboard, record_facts
from tests.web.reader import Reader, get, some_facts

VIEWS = ("/", "/vitals", "/sessions", "/visitors", "/funnels", "/shipping", "/sessions/all", "/visitors/ada")
REAL: dict[str, Any] = {"read_shipping": read_shipping, "read_session_shipping": read_session_shipping}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of `some_facts`; nothing here writes."""
    return record_facts(tmp_path_factory.mktemp("pages") / "sidecar.db", some_facts())


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_pages(path: Path, tmp_path: Path) -> None:
    assert "Not found no such session 404" in get(path, "/sessions/none", status=404).text
    assert "no such visitor" in get(path, "/visitors/none", status=404).text
    wrong = "period: must be one of 24h, 7d, 30d, 90d, custom"
    assert wrong in get(path, "/?period=x", status=400).text
    assert "cannot be read at the moment" in get(tmp_path / "none.db", "/", status=503).text


def test_an_ambiguous_id_is_a_page_with_the_choice(tmp_path: Path) -> None:
    facts = [event("s", visitor="v"), event("s", funnel_id="ads"), event("s", site="shop", visitor="v")]
    path = record_facts(tmp_path / "sidecar.db", facts)
    links = get(path, "/sessions/s", status=300).links()
    assert [link for link in links if link.startswith("/sessions/")] == [
        "/sessions/s?site=default&funnelId=ads",
        "/sessions/s?site=default&funnelId=default",
        "/sessions/s?site=shop&funnelId=default",
    ]
    links = get(path, "/visitors/v", status=300).links()
    assert [link for link in links if link.startswith("/visitors/")] == [
        "/visitors/v?site=default",
        "/visitors/v?site=shop",
    ]


# --- the frame -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", VIEWS)
def test_tables_have_a_caption_and_scopes(path: Path, url: str) -> None:
    page = get(path, url, **REAL)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")


@pytest.mark.parametrize("url", VIEWS)
def test_wide_tables_scroll_by_themselves(path: Path, url: str) -> None:
    """In a region that the keyboard reaches; the short lists of the overview fit everywhere."""
    page = get(path, url, **REAL)
    for place, (tag, attributes) in enumerate(page.tags):
        if tag == "table" and attributes.get("class") != "top-list":
            around = page.tags[place - 1][1]
            assert (around["class"], around["tabindex"], around["role"]) == ("scroll", "0", "region")
            assert around["aria-label"]


@pytest.mark.parametrize("url", ["/", "/vitals", "/sessions", "/visitors", "/funnels"])
def test_every_section_keeps_the_filters(path: Path, url: str) -> None:
    """In the navigation, and for its own form."""
    query = "funnelId=default&device=mobile&country=FR&page=%2Fstart&period=30d"
    page = get(path, f"{url}?{query}", now=START + 60_000)
    for target in ("/", "/vitals", "/sessions", "/visitors", "/funnels"):
        assert f"{target}?{query}" in page.links()
    current = [a for tag, a in page.tags if tag == "a" and a.get("aria-current") == "page"]
    assert [a["href"] for a in current] == [f"{url}?{query}"]
    chips = [link for link in page.links() if link == f"{url}?" + query.replace("&country=FR", "")]
    assert len(chips) == 1
    assert f"{url}?period=30d" in page.links()
    assert ("option", {"value": "FR", "selected": None}) in page.tags
    assert ("option", {"value": "mobile", "selected": None}) in page.tags


def test_filters_offer_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event("a", funnel_id="ads"), event("b", site="shop")])
    page = get(path, "/?funnelId=gone")
    options = [attributes["value"] for tag, attributes in page.tags if tag == "option" and "value" in attributes]
    assert options[:7] == ["", "default", "shop", "", "ads", "default", "gone"]
    monkeypatch.setattr("sidecar.store.choices.CHOICES_MAX", 1)
    page = get(path, "/?funnelId=ads")
    assert ("input", {"name": "funnelId", "value": "ads", "maxlength": "128"}) in page.tags


@pytest.mark.parametrize(
    ("headers", "given", "tag"),
    [
        ({}, {}, '<script defer src="http://127.0.0.1:8787/sidecar.js" data-funnel="default"></script>'),
        (
            {"Host": "[::1]:80"},
            {"tag_funnel": 'a"b', "tag_key": "k"},
            '<script defer src="http://[::1]:80/sidecar.js" data-funnel="a&quot;b" data-key="k"></script>',
        ),
        (
            {"Host": "vitals.test", "X-Forwarded-Proto": "https", "Authorization": "Bearer s3cret"},
            {"token": "s3cret"},
            '<script defer src="https://vitals.test/sidecar.js" data-funnel="default"></script>',
        ),
        (
            {"Host": 'evil"><b>', "X-Forwarded-Proto": "javascript", "Authorization": "Bearer s3cret"},
            {"token": "s3cret"},
            '<script defer src="http://127.0.0.1:8787/sidecar.js" data-funnel="default"></script>',
        ),
    ],
)
def test_an_empty_dashboard_shows_the_tag(tmp_path: Path, headers: dict[str, str], given: Any, tag: str) -> None:
    path = record_facts(tmp_path / "sidecar.db", [])
    page = get(path, "/", headers=headers, **given)
    assert tag in page.texts
    [script] = [attributes for name, attributes in page.tags if name == "script"]
    assert (script["src"] or "").startswith("/static/live.")  # what is shown of the tracker is text


# --- what a page may ask for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [*VIEWS, "/preferences", "/sessions/none"])
def test_pages_ask_only_for_their_own_files(path: Path, url: str) -> None:
    """The stylesheet; the overview for one script, too, and only its policy allows one."""
    with open_dashboard(path, **REAL) as client:
        answer = client.get(url)
        page = Reader(answer.text)
        asked = [a.get("src") or a.get("href") for tag, a in page.tags if tag in ("link", "img", "iframe", "script")]
        files = [link or "" for link in asked if not (link or "").startswith("data:image/svg+xml,")]
        expected = [r"/static/dashboard\.[0-9a-f]{12}\.css", r"/static/live\.[0-9a-f]{12}\.js"][
            : 2 if url == "/" else 1
        ]
        assert len(files) == len(expected)
        for file, pattern in zip(files, expected, strict=True):
            assert re.fullmatch(pattern, file)
            assert client.get(file).headers["cache-control"] == "public, max-age=31536000, immutable"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert ("script-src 'self'; connect-src 'self'" in policy) == (url == "/")
    assert "script-src" not in policy.replace("script-src 'self'", "")
    assert not [a for _, a in page.tags if "style" in a or any(name.startswith("on") for name in a)]


def test_the_stylesheet_and_the_script_are_of_this_house(path: Path) -> None:
    with open_dashboard(path) as client:
        page = Reader(client.get("/").text)
        (style,) = [a["href"] or "" for tag, a in page.tags if tag == "link" and a["rel"] == "stylesheet"]
        (script,) = [a["src"] or "" for tag, a in page.tags if tag == "script"]
        sheet, code = client.get(style), client.get(script)
    assert sheet.headers["content-type"] == "text/css; charset=utf-8"
    assert "light-dark(" in sheet.text
    assert not re.search(r"url\(|@import|//", sheet.text)
    assert code.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "http" not in code.text
    assert "console" not in code.text


def test_the_stylesheet_needs_no_token(path: Path) -> None:
    with open_dashboard(path, token="s3cret", peer="192.0.2.1") as client:
        page = Reader(client.get("/").text)
        (style,) = [a["href"] for tag, a in page.tags if tag == "link" and a["rel"] == "stylesheet"]
        assert client.get(style or "").status_code == 200


def test_a_page_is_packed_for_the_way(path: Path) -> None:
    """An overview with its files takes less than 60 KB, whatever its period."""
    with open_dashboard(path, now=START + 60_000) as client:
        for url in ("/?period=24h", "/?period=90d", "/vitals?period=90d"):
            answer = client.get(url)
            assert answer.headers["content-encoding"] == "gzip"
            files = [
                a.get("src") or a.get("href") or "" for tag, a in Reader(answer.text).tags if tag in ("link", "script")
            ]
            sent = [answer, *(client.get(file) for file in files if file.startswith("/static/"))]
            assert sum(int(one.headers["content-length"]) for one in sent) < 60_000


# --- colours ---------------------------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["text", "quiet", "link", "good", "fair", "poor"])
@pytest.mark.parametrize("ground", ["page", "card", "soft"])
def test_colours_have_contrast(scheme: int, name: str, ground: str) -> None:
    """4.5:1, as WCAG 2.2 asks of text at level AA."""
    sheet = (Path(pages.__file__).parent / "static" / "dashboard.css").read_text(encoding="utf-8")
    colours = {key: (light, dark) for key, light, dark in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", sheet)}
    lights = sorted([_luminance(colours[name][scheme]), _luminance(colours[ground][scheme])])
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5


# --- the way back ----------------------------------------------------------------------------------------------------


def test_the_pages_of_one_keep_the_way_back(path: Path) -> None:
    """From a list with filters, search and order to a session, its visitor, and the question to erase it."""
    wanted = "/sessions?device=mobile&period=30d&q=a&sort=lcp"
    with open_dashboard(path, **REAL) as client:
        session = next(link for link in Reader(client.get(wanted).text).links() if link.startswith("/sessions/"))
        for begin in ("/visitors/", "/visitors/"):
            page = Reader(client.get(session).text)
            assert "/vitals?device=mobile&period=30d" in page.links()
            assert wanted in page.links() or "/visitors?device=mobile&period=30d" in page.links()
            session = next(link for link in page.links() if link.startswith(begin) and "from=" in link)
        assert "/erase?" in session
        erase = Reader(client.get(session).text)
        assert "/sessions?device=mobile&period=30d" in erase.links()


@pytest.mark.parametrize(
    "told",
    [
        *("https://evil.test/", "//evil.test", "/\\evil.test", "/sessions/x", "/nowhere?period=30d", "sessions", ""),
        *("/sessions?period=for+ever", "/sessions?" + "q=a&" * 1500, "/sessions?" + "a&" * 40, "/?since=x", "/\n?q=a"),
    ],
)
def test_a_way_back_that_is_none_of_ours_is_not_taken(path: Path, told: str) -> None:
    """The page stands without it."""
    with open_dashboard(path, **REAL) as client:
        answer = client.get("/sessions/all", params={"site": "default", "funnelId": "default", "from": told})
        assert answer.status_code == 200
        page = Reader(answer.text)
    assert {"/sessions", "/", "/vitals"} <= set(page.links())
    others = [link for link in page.links() if not link.startswith("/preferences?")]
    assert not [link for link in others if "evil" in link or "from=" in link]


def test_shipping_and_the_choice_of_a_zone_lead_back(path: Path) -> None:
    """Their links keep the filters of the view before."""
    with open_dashboard(path, **REAL) as client:
        shipping = Reader(client.get("/shipping?period=30d&device=mobile").text)
        assert "/sessions?device=mobile&period=30d" in shipping.links()
        assert client.get("/shipping?period=for+ever").status_code == 200
        [link] = [link for link in shipping.links() if link.startswith("/preferences")]
        fields = {a["name"]: a.get("value") for tag, a in Reader(client.get(link).text).tags if tag == "input"}
        assert fields["next"] == "/shipping?period=30d&device=mobile"
        foreign = Reader(client.get("/preferences?next=//evil.test/").text)
        assert ("input", {"type": "hidden", "name": "next", "value": "/"}) in foreign.tags


def test_an_empty_file_says_what_to_do(tmp_path: Path) -> None:
    """Not to look at 90 days."""
    empty = record_facts(tmp_path / "empty.db", [])
    for url in ("/vitals", "/sessions", "/visitors", "/funnels"):
        text = get(empty, url).text
        assert "No session so far The overview says how to put the tracker on a site." in text
        assert "90 days" not in text.split("No session so far")[1]
