"""Rows of the fault matrix: lines and bodies that are poison, foreign, hostile or large."""

from __future__ import annotations

import json
from pathlib import Path

from sidecar.store import outbox
from tests.builders import event, vital
from tests.proxy import Fault, http_answer
from tests.ship.bench import SESSIONS, TOKEN, Bench, Row, export, lines_of, named, pack

# --- lines that are refused ------------------------------------------------------------------------------------------


def requeue(bench: Bench) -> None:
    """What was parked goes again, as it is now."""
    sql = "SELECT session_key FROM parked"
    for (key,) in bench.sender.read(lambda conn: conn.execute(sql).fetchall()):
        bench.sender.write(lambda conn, key=key: outbox.requeue(conn, key))  # type: ignore[misc]
    assert bench.ship().code == 0


def poison_among_500(bench: Bench) -> None:
    """One line of 500 is refused with its whole batch: halving finds it."""
    bench.sender.record_sessions(500)
    poison = b'"sessionId":"s-137"'
    refusal = Fault(answer=http_answer(422, b'{"error":"no s-137, please"}'))
    bench.proxy.rule = lambda request: refusal if poison in b"".join(lines_of(request.body)) else Fault()
    ended = bench.ship()
    requests = len(bench.proxy.requests)
    assert requests <= 19, "2 log2(500) + 2"
    assert ended.out == f"499 sessions shipped in 9 batches ({requests} requests), 1 parked\n"
    bench.expect("ready", None, waitingSessions=0, confirmedSessions=499, parkedSessions=1)
    assert len(export(bench.receiver.database)) == 499
    said = bench.sender.session("s-137")
    assert (said["shipping"], said["parkedReason"]) == ("parked", f"{named(422)}: no s-137, please")
    bench.proxy.rule = None
    requeue(bench)
    bench.check()


def refused_alone(status: int) -> Row:
    """A line alone that is refused is parked, with the destination's words."""

    def row(bench: Bench) -> None:
        bench.sender.record_sessions(2)
        bench.proxy.rule = lambda _: Fault(answer=http_answer(status, b'{"error":"not this"}'))
        ended = bench.ship()
        assert ended.out == "0 sessions shipped in 0 batches (3 requests), 2 parked\n"
        bench.expect("ready", None, waitingSessions=0, confirmedSessions=0, parkedSessions=2)
        assert bench.sender.session("s-000")["parkedReason"] == f"{named(status)}: not this"
        bench.proxy.rule = None
        requeue(bench)
        bench.check()

    return row


def too_large(bench: Bench) -> None:
    """413: halved, and the size is remembered for the batches after it."""
    bench.sender.record_sessions(8)
    refusal = Fault(answer=http_answer(413))
    bench.proxy.rule = lambda request: refusal if len(lines_of(request.body)) > 4 else Fault()
    assert bench.ship().code == 0
    bench.sender.record_sessions(8, first=100)
    assert bench.ship().code == 0
    counts = [len(lines_of(request.body)) for request in bench.proxy.requests]
    assert (counts[:3], sum(counts[3:]), max(counts[3:]) <= 4) == ([8, 4, 4], 8, True)
    bench.check()


def token_of_another_site(bench: Bench) -> None:
    """A token may write only its own sites: the lines are parked, and go when it may."""
    bench.sender.record_sessions(2)
    bench.sender.record_sessions(2, site="blog", first=10)
    tokens = [{"token": TOKEN, "sites": ["blog"]}, {"token": "other", "sites": ["default"]}]
    bench.restart_receiver(RECEIVE_TOKEN=json.dumps(tokens))
    assert "2 sessions shipped" in bench.ship().out
    bench.expect("ready", None, waitingSessions=0, confirmedSessions=2, parkedSessions=2)
    assert bench.sender.session("s-000")["parkedReason"] == "site: not allowed to this token"
    assert {line["site"] for line in export(bench.receiver.database)} == {"blog"}
    bench.restart_receiver(RECEIVE_TOKEN=TOKEN)
    requeue(bench)
    bench.check()


def unreadable_line(bench: Bench) -> None:
    """A line that is no document, among good ones: rejected with its reason, alone."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(answer=http_answer(503))]
    assert bench.ship().code == 1
    lines = lines_of(bench.proxy.requests[0].body)
    answer = bench.post(pack([lines[0], b"{\n", b'{"type":"future"}\n', lines[1]]), 4, key="mixed").json()
    assert (answer["accepted"], [entry["index"] for entry in answer["rejected"]]) == (2, [1, 2])
    assert bench.ship().code == 0
    bench.check()


def hostile_site(bench: Bench) -> None:
    """A `site` that is a path: the receiver refuses the line, the others are taken, and nothing blocks."""
    bench.sender.record_sessions(SESSIONS)
    bench.sender.record(event("evil", site="../../../etc"))
    assert bench.ship().out.endswith("1 parked\n")
    bench.expect("ready", None, waitingSessions=0, confirmedSessions=SESSIONS, parkedSessions=1)
    assert str(bench.sender.session("evil")["parkedReason"]).startswith("site: must be 1 to 64 of")
    assert {line["site"] for line in export(bench.receiver.database)} == {"default"}
    assert export(bench.receiver.database) == [line for line in export(bench.sender.path) if line["site"] == "default"]


# --- bodies ----------------------------------------------------------------------------------------------------------


def ten_thousand_facts(bench: Bench) -> None:
    """A session at its bound is one document, and it is taken whole."""
    facts = [vital("large", "LCP", 1000 + number, fact_id=f"v-{number}", at=number) for number in range(9_999)]
    bench.sender.record(event("large"), *facts)
    bench.sender.record_sessions(SESSIONS)
    assert bench.ship().code == 0
    [large] = [line for line in export(bench.receiver.database) if line["sessionId"] == "large"]
    assert len(large["webVitals"]) == 9_999
    bench.check()


def gzip_bomb(bench: Bench) -> None:
    """150 KB that unpack to 150 MB: 413 before it is all there, and the receiver lives on in little memory."""
    bomb = pack([bytes(150_000_000)])
    answer = bench.post(bomb, 1, key="bomb")
    assert (answer.status_code, answer.json()) == (413, {"error": "over 67108864 bytes unpacked"})
    status = Path(f"/proc/{bench.receiver.fork.pid}/status").read_text()
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_kib < 400 * 1024, "the bound is 64 MiB, held twice for a moment"
    assert bench.count_receipts() == 0
    bench.sender.record_sessions(SESSIONS)
    assert bench.ship().code == 0
    bench.check()


def several_members(bench: Bench) -> None:
    """A gzip of several members is one body, by RFC 1952; it counts once, also when it comes again otherwise packed."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(answer=http_answer(503))]
    assert bench.ship().code == 1
    [first] = bench.proxy.requests
    body = b"".join(pack([line]) for line in lines_of(first.body))
    assert bench.post(body, SESSIONS, key="members").json()["accepted"] == SESSIONS
    assert bench.ship().code == 0
    bench.check()


def plain_cut_at_a_line(bench: Bench) -> None:
    """Unpacked lines that end early, at a line's end: the count of records tells, nothing is noted."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(answer=http_answer(503))]
    assert bench.ship().code == 1
    lines = lines_of(bench.proxy.requests[0].body)
    for kept in range(SESSIONS):
        answer = bench.post(b"".join(lines[:kept]), SESSIONS, key="plain", encoding="identity")
        assert (answer.status_code, bench.count_receipts()) == (408, 0)
    assert bench.post(b"".join(lines), SESSIONS, key="plain", encoding="identity").json()["accepted"] == SESSIONS
    assert bench.ship().code == 0
    bench.check()
