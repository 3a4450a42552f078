"""What a real Chromium once reported, sent again: the recording in `data/`, made with web-vitals 6 on a small site.

It holds twelve requests of one visit: two loads, a restore from the back/forward cache, a load with two single-page
navigations, another load and its reload.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.servers import Server, sidecar

RECORDING = Path(__file__).with_name("data") / "chromium-156-web-vitals-6.json"
SESSION, VISITOR = "session-of-the-recording", "visitor-of-the-recording"

# Of the connection on which it was recorded; a new one has its own.
HOP_BY_HOP = {"host", "connection", "content-length", "accept-encoding"}

# Metric instances, each reported once.
REPORTED = {"LCP": 8, "INP": 4, "CLS": 8, "FCP": 8, "TTFB": 8}

# TTFB of these is no measurement.
PLACEHOLDERS = {"back-forward-cache", "soft-navigation"}

Item = dict[str, Any]


class Request(NamedTuple):
    """One request of the recording, as a request to the sidecar."""

    headers: dict[str, str]
    items: list[Item]

    def backwards(self) -> Request:
        """The same items, the last one first."""
        return self._replace(items=self.items[::-1])


class Counts(NamedTuple):
    """Of an answer."""

    accepted: int = 0
    duplicate: int = 0
    superseded: int = 0


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """The recording, moved in time as a whole, so that its last report was made now."""
    recorded = json.loads(RECORDING.read_bytes())["requests"]
    bodies = [json.loads(request["body"]) for request in recorded]
    shift = time.time_ns() // 1_000_000 - max(body["ts"] for body in bodies)
    return [
        Request(
            {name: text for name, text in request["headers"] if name not in HOP_BY_HOP},
            [
                metric
                | {
                    "sessionId": SESSION,
                    "anonymousId": VISITOR,
                    "timestamp": body["ts"] + shift,
                    "pageUrl": metric["navigationURL"],
                }
                for metric in body["metrics"]
            ],
        )
        for request, body in zip(recorded, bodies, strict=True)
    ]


@contextmanager
def fresh_sidecar(database: Path) -> Iterator[tuple[Server, httpx2.Client]]:
    """A sidecar that holds nothing, and a client without headers of its own."""
    with Server(database) as server, httpx2.Client(base_url=server.url, timeout=30, verify=False) as client:
        yield server, client


class Replayed(NamedTuple):
    """A sidecar to which the recording was sent once; `counts` are the answers to its requests."""

    server: Server
    client: httpx2.Client
    counts: list[Counts]
    document: dict[str, Any]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, requests: list[Request]) -> Iterator[Replayed]:
    """For all tests that change nothing."""
    with fresh_sidecar(tmp_path_factory.mktemp("recording") / "sidecar.db") as (server, client):
        counts = [send(client, request) for request in requests]
        document = json.loads(*export(server))
        yield Replayed(server, client, counts, document)


def send(client: httpx2.Client, request: Request) -> Counts:
    """What became of its items, none of which may be rejected."""
    answer = client.post("/api/track/web-vitals", content=json.dumps(request.items), headers=request.headers)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["success"], body["rejected"]) == (True, [])
    return Counts(body["accepted"], body["duplicate"], body["superseded"])


def export(server: Server, *apart: str) -> list[str]:
    """The documents it holds, without the fields named."""
    done = sidecar("export", DATABASE=str(server.database))
    assert done.returncode == 0, done.stderr
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    return [json.dumps({name: value for name, value in each.items() if name not in apart}) for each in documents]


def measured(requests: Iterable[Request]) -> dict[str, list[float]]:
    """Values by metric, placeholders left out: each instance is in the recording once."""
    values: dict[str, list[float]] = defaultdict(list)
    for item in (item for request in requests for item in request.items):
        if not (item["name"] == "TTFB" and item["navigationType"] in PLACEHOLDERS):
            values[item["name"]].append(item["value"])
    return values


def test_every_report_is_stored_once(replayed: Replayed, requests: list[Request]) -> None:
    """36 reports of 36 metric instances, from the User-Agent and in the text/plain of the recording."""
    assert {request.headers["content-type"] for request in requests} == {"text/plain;charset=UTF-8"}
    assert {request.headers["user-agent"].partition("Chrome/")[2] for request in requests} == {
        "156.0.0.0 Safari/537.36"
    }
    assert replayed.counts == [Counts(accepted=number) for number in (3, 2, 2, 2, 3, 2, 12, 2, 2, 2, 2, 2)]
    document = replayed.document
    assert (document["sessionId"], document["visitor"]["anonymousId"]) == (SESSION, VISITOR)
    assert (document["provisional"], document["pageViews"], document["events"]) == (True, 0, [])
    assert Counter(vital["metric"] for vital in document["webVitals"]) == REPORTED
    assert Counter((vital["pagePath"], vital["navigationType"]) for vital in document["webVitals"]) == {
        ("/page/a", "navigate"): 5,
        ("/page/b", "navigate"): 4,
        ("/page/a", "back-forward-cache"): 5,
        ("/page/c", "navigate"): 5,
        ("/page/soft-qktc", "soft-navigation"): 5,
        ("/page/soft-438b", "soft-navigation"): 4,
        ("/page/reload", "navigate"): 4,
        ("/page/reload", "reload"): 4,
    }
    assert not any(vital["clockSkewed"] for vital in document["webVitals"])
    assert [(each["browserName"], each["osName"]) for each in document["clients"]] == [("Chrome", "Linux")]
    assert document["clients"][0]["browserVersion"].partition(".")[0] == "156"
    assert document["firstPageUrl"] == "http://127.0.0.1:8711/page/a"
    assert document["lastPageUrl"] == "http://127.0.0.1:8711/page/reload"
    assert document["durationSeconds"] == 7  # from the first report to the last: 7.133 s


def test_facts_are_what_the_library_said(replayed: Replayed, requests: list[Request]) -> None:
    fields = ("value", "rating", "delta", "navigationType", "pageUrl")
    held = {(each["metric"], each["id"]): [each[name] for name in fields] for each in replayed.document["webVitals"]}
    said = {
        (each["name"], each["id"]): [each[name] for name in fields] for request in requests for each in request.items
    }
    assert held == said


def test_averages_and_percentiles_without_placeholders(replayed: Replayed, requests: list[Request]) -> None:
    """TTFB 0 of the restore and of both single-page navigations is stored, and in no figure."""
    document = replayed.document
    values = measured(requests)
    counted = REPORTED | {"TTFB": 5}
    assert {metric: len(found) for metric, found in values.items()} == counted
    averages = {metric: document[f"avg{metric.capitalize()}"] for metric in values}
    assert averages == {metric: round(sum(found) / len(found), 6) for metric, found in values.items()}
    assert averages == {"LCP": 65.9375, "INP": 68, "CLS": 0, "FCP": 65.9375, "TTFB": 12.36}
    ttfb = sorted(each["value"] for each in document["webVitals"] if each["metric"] == "TTFB")
    assert [round(value, 3) for value in ttfb] == [0, 0, 0, 6.3, 9.6, 10.9, 16.1, 18.9]
    metrics = replayed.client.get("/api/vitals").json()["metrics"]
    assert {metric: metrics[metric]["count"] for metric in values} == counted
    # The 6th of 8, the 3rd of 4, the 4th of 5.
    percentiles = {metric: round(metrics[metric]["p75"], 3) for metric in values}
    assert percentiles == {"LCP": 84, "INP": 128, "CLS": 0, "FCP": 84, "TTFB": 16.1}


def test_a_second_time_backwards_changes_nothing(replayed: Replayed, requests: list[Request]) -> None:
    before = export(replayed.server, "revision", "finished")
    counts = [send(replayed.client, request.backwards()) for request in reversed(requests)]
    assert counts == [Counts(duplicate=number) for number in (2, 2, 2, 2, 2, 12, 2, 3, 2, 2, 2, 3)]
    assert export(replayed.server, "revision", "finished") == before


def test_backwards_from_the_start_is_the_same(replayed: Replayed, requests: list[Request], tmp_path: Path) -> None:
    """Into an empty database, report by report: the order of arrival leaves no trace."""
    with fresh_sidecar(tmp_path / "backwards.db") as (server, client):
        for request in reversed(requests):
            for item in reversed(request.items):
                assert send(client, request._replace(items=[item])) == Counts(accepted=1)
        assert export(server, "revision", "finished") == export(replayed.server, "revision", "finished")


def test_an_instance_reported_again_ends_with_its_newest_value(requests: list[Request], tmp_path: Path) -> None:
    """The library does so when a page is hidden again: INP may have fallen by then, and CLS grown.

    In the recording each instance was reported once, so the first page's INP (128) and CLS (0) are reported again here.
    """
    first = requests[1]
    assert [(item["name"], item["value"]) for item in first.items] == [("INP", 128), ("CLS", 0)]
    inp, cls = first.items
    later = first._replace(
        items=[
            inp | {"value": 64, "delta": -64, "timestamp": inp["timestamp"] + 500},
            cls | {"value": 0.15, "delta": 0.15, "rating": "needs-improvement", "timestamp": cls["timestamp"] + 500},
        ]
    )
    with fresh_sidecar(tmp_path / "again.db") as (server, client):
        for request in requests:
            send(client, request)
        assert send(client, later) == Counts(accepted=2)
        assert send(client, first) == Counts(superseded=2)
        assert send(client, later) == Counts(duplicate=2)
        document = json.loads(*export(server))
        assert Counter(vital["metric"] for vital in document["webVitals"]) == REPORTED
        held = {each["id"]: (each["value"], each["delta"], each["rating"]) for each in document["webVitals"]}
        assert held[inp["id"]] == (64, -64, "good")
        assert held[cls["id"]] == (0.15, 0.15, "needs-improvement")
        assert (document["avgInp"], document["avgCls"]) == (52, 0.01875)  # (64 + 128 + 8 + 8) / 4, 0.15 / 8


def test_the_file_is_sound(replayed: Replayed) -> None:
    done = sidecar("verify", DATABASE=str(replayed.server.database))
    assert done.returncode == 0, done.stderr
