"""Who may read: the rule as a table, the cookie, the limit on sign-ins, and the forms."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from urllib.parse import urlencode

import httpx2
import pytest
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.store.shipping import read_shipping
from sidecar.web.access import ATTEMPTS_MAX, COOKIE_LIFETIME_S, Access, Attempts, SafeHeaders, is_same_origin
from tests.builders import START, open_dashboard, record_facts, serve_dashboard

Headers = list[tuple[str, str]]
LOCAL: Headers = [("host", "127.0.0.1:8787")]
PATHS = (
    *("/", "/vitals", "/sessions", "/sessions/x", "/visitors", "/visitors/x", "/visitors/x/erase"),
    *("/funnels", "/shipping", "/shipping/discard?id=1"),
    *("/api/overview", "/api/vitals", "/api/sessions", "/api/sessions/x", "/api/visitors", "/api/visitors/x"),
    "/api/shipping",
)


def scope_of(peer: str | None, headers: Headers) -> Scope:
    """A request as an ASGI server describes it."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    client = None if peer is None else (peer, 50_000)
    return {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw, "client": client}


def access(token: str | None, now: int = START) -> Access:
    return Access(token, lambda: now)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database; nothing here writes."""
    return record_facts(tmp_path_factory.mktemp("access") / "sidecar.db", [])


# --- without a token -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("127.0.0.1", LOCAL),
        ("127.0.0.2", [("host", "localhost:8787")]),
        ("::1", [("host", "[::1]:8787")]),
        ("::ffff:127.0.0.1", [("host", "LOCALHOST")]),
        ("127.0.0.1", [("host", "127.255.0.9")]),
        ("127.0.0.1", [*LOCAL, ("x-forward", "not one of them")]),
    ],
)
def test_open_to_this_machine(peer: str, headers: Headers) -> None:
    assert access(None).refusal(scope_of(peer, headers)) is None
    assert access("").refusal(scope_of(peer, headers)) is None


@pytest.mark.parametrize(
    "peer", [None, "", "192.0.2.1", "128.0.0.1", "::2", "::ffff:192.0.2.1", "testclient", "0.0.0.1"]
)
def test_closed_to_other_peers(peer: str | None) -> None:
    assert access(None).refusal(scope_of(peer, LOCAL)) is not None


@pytest.mark.parametrize(
    "host",
    [
        *("", "localhost.evil.com", "127.0.0.1.evil", "evil.com", "127.0.0.1.evil:8787", "evil.com:127.0.0.1"),
        *("127.0.0.1@evil.com", "localhost@evil.com", "localhost:evil", "127.0.0.999", "127.0.0", "1127.0.0.1"),
        *(
            "localhost:",
            "[::1].evil",
            "::1",
            "[::2]",
            "192.0.2.1",
            "local host",
            "localhost,evil.com",
            "127.0.0.1:123456",
        ),
        *("localhost/", "localhost:8787\x00", "127.0.0.\xb9"),
    ],
)
def test_closed_to_other_hosts(host: str) -> None:
    assert access(None).refusal(scope_of("127.0.0.1", [("host", host)])) is not None


def test_closed_without_a_host_and_with_two() -> None:
    assert access(None).refusal(scope_of("127.0.0.1", [])) is not None
    assert access(None).refusal(scope_of("127.0.0.1", [*LOCAL, *LOCAL])) is not None


@pytest.mark.parametrize(
    "name",
    [
        *("forwarded", "via", "x-real-ip", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded"),
        *("X-Forwarded-Anything", "x-forwarded-"),
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", ""])
def test_closed_behind_a_proxy(name: str, value: str) -> None:
    scope = scope_of("127.0.0.1", [*LOCAL, (name.lower(), value)])
    assert "SIDECAR_DASHBOARD_TOKEN" in (access(None).refusal(scope) or "")


def test_no_bearer_opens_where_no_token_is_set() -> None:
    for given in ("Bearer ", "Bearer", "Bearer None", "Bearer x"):
        assert access(None).refusal(scope_of("192.0.2.1", [*LOCAL, ("authorization", given)])) is not None
    cookie = f"{access(None).cookie_name}={access(None).make_cookie()}"
    assert access(None).refusal(scope_of("192.0.2.1", [*LOCAL, ("cookie", cookie)])) is not None


# --- with a token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        (["Bearer s3cret"], True),
        (["bearer   s3cret "], True),
        (["Bearer s3crets"], False),
        (["Bearer s3cre"], False),
        (["Bearer S3CRET"], False),
        (["Bearer"], False),
        (["Basic s3cret"], False),
        (["s3cret"], False),
        (["Bearer s3cret", "Bearer s3cret"], False),
        ([], False),
    ],
)
def test_the_token_as_bearer(authorization: list[str], allowed: bool) -> None:
    headers = [
        ("host", "vitals.test"),
        ("x-forwarded-for", "192.0.2.9"),
        *(("authorization", a) for a in authorization),
    ]
    assert (access("s3cret").refusal(scope_of("192.0.2.1", headers)) is None) is allowed
    # This machine itself is no exception.
    assert (access("s3cret").refusal(scope_of("127.0.0.1", headers + LOCAL)) is None) is allowed


def test_a_token_of_any_characters() -> None:
    scope = scope_of("192.0.2.1", [("authorization", "Bearer pässwörd".encode().decode("latin-1"))])
    assert access("pässwörd").refusal(scope) is None


def test_the_cookie_is_a_proof_and_not_the_token() -> None:
    rule = access("s3cret")
    value = rule.make_cookie()

    def reads(rule: Access, cookie: str, name: str = rule.cookie_name) -> bool:
        return rule.refusal(scope_of("192.0.2.1", [("cookie", f"a=b; {name}={cookie}; c=d")])) is None

    until, proof = value.split(".")
    assert int(until) == START // 1000 + COOKIE_LIFETIME_S
    assert "s3cret" not in value
    assert reads(rule, value)
    assert reads(access("s3cret", START + COOKIE_LIFETIME_S * 1000 - 1), value)
    assert not reads(access("s3cret", START + COOKIE_LIFETIME_S * 1000), value)
    assert not reads(rule, f"{int(until) + 1}.{proof}")
    assert not reads(rule, f"0{until}.{proof}")
    assert not reads(rule, f"{until}.{'0' * 64}")
    assert not reads(rule, "")
    assert not reads(rule, "s3cret")
    assert not reads(rule, value, "other")
    assert not reads(access("changed"), value, access("changed").cookie_name)
    assert access("changed").cookie_name != rule.cookie_name


# --- every door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", PATHS)
def test_every_reading_stands_behind_the_rule(path: Path, url: str) -> None:
    with open_dashboard(path, peer="192.0.2.1") as client:
        closed = client.get(url)
    with open_dashboard(path, peer="192.0.2.1", token="s3cret", read_shipping=read_shipping) as client:
        unsigned = client.get(url)
        signed = client.get(url, headers={"Authorization": "Bearer s3cret"})
    assert (closed.status_code, unsigned.status_code) == (403, 403)
    assert signed.status_code == (404 if url.endswith(("/x", "/erase", "id=1")) else 200)
    for answer in (closed, unsigned, signed):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        live = "; script-src 'self'; connect-src 'self'" if url == "/" and answer is signed else ""
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
            f"frame-ancestors 'none'{live}"
        )
        assert not [name for name in answer.headers if name.startswith("access-control")]
    for answer in (closed, unsigned):
        assert "SIDECAR_DASHBOARD_TOKEN" in answer.text
        if url.startswith("/api/"):
            assert "\n" not in answer.json()["error"]


def test_no_route_was_forgotten(path: Path) -> None:
    """Whatever its method, each refuses a stranger, but for sign-in, sign-out, the assets and the choice of a clock."""
    with open_dashboard(path, peer="192.0.2.1", token="s3cret") as client:
        routes = [route for route in client.app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]
        doors = ("/sign-in", "/sign-out", "/static/", "/preferences")
        behind = [route for route in routes if not route.path.startswith(doors)]
        assert len(behind) >= 18
        for route in behind:
            url = re.sub(r"{[^}]*}", "x", route.path)
            for method in route.methods or ():
                assert client.request(method, url, headers=ORIGIN).status_code == 403, (method, url)


def test_the_rule_over_a_real_connection(path: Path) -> None:
    tries = [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "localhost.evil.com"}, 403),
        ({"X-Forwarded-For": "127.0.0.1"}, 403),
        ({"Via": "1.1 proxy"}, 403),
    ]
    with serve_dashboard(path) as port, httpx2.Client(verify=False) as client:
        url = f"http://127.0.0.1:{port}/api/overview"
        statuses = [client.get(url, headers=headers).status_code for headers, _ in tries]
    assert statuses == [status for _, status in tries]


def test_headers_that_an_answer_sets_itself_stay() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=1")]})

    async def run(app: ASGIApp) -> None:
        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await app({"type": "http"}, receive, send)

    asyncio.run(run(SafeHeaders(app)))
    assert [value for name, value in sent[0]["headers"] if name == b"cache-control"] == [b"max-age=1"]


# --- signing in ------------------------------------------------------------------------------------------------------

ORIGIN = {"Origin": "http://127.0.0.1:8787", "Content-Type": "application/x-www-form-urlencoded"}


def test_sign_in_and_out(path: Path) -> None:
    with open_dashboard(path, token="s3cret", peer="192.0.2.1") as client:
        refused = client.get("/sessions/a%2Fb?site=x")
        assert refused.status_code == 403
        assert 'name="next" value="/sessions/a%2Fb?site=x"' in refused.text
        answer = client.post("/sign-in", headers=ORIGIN, content=urlencode({"token": "s3cret", "next": "/?site=x"}))
        assert (answer.status_code, answer.headers["location"]) == (303, "/?site=x")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Secure" not in cookie
        assert "s3cret" not in cookie
        assert client.get("/api/overview").status_code == 200
        assert "Sign out" in client.get("/").text
        assert client.get("/sign-in").headers["location"] == "/"
        left = client.post("/sign-out", headers=ORIGIN)
        assert (left.status_code, left.headers["location"]) == (303, "/sign-in")
        assert client.get("/api/overview").status_code == 403
        assert client.get("/sign-in").status_code == 200


def test_the_cookie_is_secure_where_the_page_is(path: Path) -> None:
    with open_dashboard(path, token="s3cret") as client:
        headers = ORIGIN | {"Origin": "https://vitals.test", "Host": "vitals.test"}
        answer = client.post("/sign-in", headers=headers, content="token=s3cret")
        assert "; Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8787", 303),
        ("https://127.0.0.1:8787", 303),
        ("http://127.0.0.1:8788", 403),
        ("http://evil.com", 403),
        ("http://127.0.0.1:8787.evil.com", 403),
        ("null", 403),
        ("", 403),
        (None, 403),
    ],
)
def test_forms_need_their_own_origin(path: Path, origin: str | None, status: int) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"} | ({"Origin": origin} if origin is not None else {})
    with open_dashboard(path, token="s3cret") as client:
        for url in ("/sign-in", "/sign-out"):
            answer = client.post(url, headers=headers, content="token=s3cret")
            assert answer.status_code == status
            assert ("set-cookie" in answer.headers) is (status == 303)


def test_an_origin_with_an_empty_host_is_none() -> None:
    assert not is_same_origin(scope_of("127.0.0.1", [("host", ""), ("origin", "http://")]))


@pytest.mark.parametrize(
    "wanted", ["//evil.com", "/\\evil.com", "http://evil.com", "/\t/evil.com", "evil.com", "", "/\r\nX: y", "/é"]
)
def test_signing_in_leads_nowhere_else(path: Path, wanted: str) -> None:
    with open_dashboard(path, token="s3cret") as client:
        answer = client.post("/sign-in", headers=ORIGIN, content=urlencode({"token": "s3cret", "next": wanted}))
        assert answer.headers["location"] == "/"
        assert client.get("/sign-in", params={"next": wanted}).headers["location"] == "/"


def test_a_wrong_token_is_said_and_the_eleventh_attempt_waits(path: Path) -> None:
    with open_dashboard(path, token="s3cret") as client:
        for wrong in ["token=wrong", "token=", "", "x" * 100, "token=%ff", *["token=no"] * (ATTEMPTS_MAX - 5)]:
            answer = client.post("/sign-in", headers=ORIGIN, content=wrong)
            assert (answer.status_code, "That is not the token." in answer.text) == (403, True)
        limited = client.post("/sign-in", headers=ORIGIN, content="token=s3cret")
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "60")
        assert client.get("/api/overview", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_a_large_form_is_refused(path: Path) -> None:
    with open_dashboard(path, token="s3cret") as client:
        assert client.post("/sign-in", headers=ORIGIN, content="token=" + "x" * 5000).status_code == 413


def test_without_a_token_there_is_nothing_to_sign_in_with(path: Path) -> None:
    with open_dashboard(path) as client:
        assert client.get("/sign-in").headers["location"] == "/"
        assert client.post("/sign-in", headers=ORIGIN, content="token=").status_code == 403
    with open_dashboard(path, peer="192.0.2.1") as client:
        answer = client.get("/sign-in")
        assert answer.status_code == 403
        assert "SIDECAR_DASHBOARD_TOKEN" in answer.text
        assert "<form" not in answer.text


def test_attempts_are_counted_a_minute_and_forgotten() -> None:
    attempts = Attempts(addresses_max=3)
    assert [attempts.take("192.0.2.1", 0) for _ in range(ATTEMPTS_MAX)] == [0] * ATTEMPTS_MAX
    assert attempts.take("192.0.2.1", 1) == 60
    assert attempts.take("192.0.2.1", 59_999) == 1
    assert attempts.take("192.0.2.2", 59_999) == 0
    assert attempts.take("192.0.2.1", 60_000) == 0
    for n in range(50):
        attempts.take(f"198.51.100.{n}", 60_000)
    assert len(attempts) == 3


def test_a_network_of_ipv6_is_one_address() -> None:
    attempts = Attempts()
    for n in range(ATTEMPTS_MAX):
        assert attempts.take(f"2001:db8::{n}", 0) == 0
    assert attempts.take("2001:db8::ffff", 0) == 60
    assert attempts.take("2001:db8:0:1::1", 0) == 0
    assert attempts.take(None, 0) == 0


def test_access_tells_its_state_and_no_secret() -> None:
    assert repr(access("s3cret")) == "<Access by token: 0 addresses tried to sign in>"
    assert repr(access(None)) == "<Access this machine only: 0 addresses tried to sign in>"
