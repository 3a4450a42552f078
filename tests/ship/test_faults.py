"""The fault matrix of shipping: one row a fault, on real processes with a scripted proxy between them.

For every row: what was acknowledged is still there while the fault lasts, /healthz or the file says in words what is
wrong, and once the fault is gone everything is delivered, once. What a row does stands in the `rows_` file of its kind;
rows that need more than one pair of sidecars, a crash at each statement or another server are named in ELSEWHERE.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.proxy import Fault, http_answer
from tests.ship import rows_directory as folder
from tests.ship import rows_ends as ends
from tests.ship import rows_lines as lines
from tests.ship import rows_way as way
from tests.ship.bench import Bench, Row

YEAR_MS = 365 * 86_400_000
GARBAGE = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
ENDLESS = b"HTTP/1.1 503 Said\r\nConnection: close\r\n\r\n"

MATRIX: dict[str, Row] = {
    # the way there
    "connection refused": way.nobody_listens,
    "connection reset at once": way.trouble(Fault(reset=True), "waiting", "no answer: ..."),
    "host unknown to DNS": way.unknown_host,
    "TLS refused: nobody vouches for the certificate": way.tls_not_trusted,
    "TLS refused: the server speaks plain HTTP": way.tls_where_there_is_none,
    "request delayed": way.delivered(Fault(delay_s=0.3)),
    "half open: no answer ever": way.silence,
    "half open, and the sender is stopped": way.stopped_in_silence,
    "body cut after the headers": way.trouble(Fault(body_cut=0), "waiting", "no answer: ..."),
    "body cut in the middle": way.trouble(Fault(body_cut=100), "waiting", "no answer: ..."),
    "packed body cut at a line's end": way.trouble(
        Fault(edit_body=way.cut_at_a_line), "waiting", "408 Request Timeout"
    ),
    "plain body cut at a line's end": lines.plain_cut_at_a_line,
    "Content-Length is too small": way.trouble(Fault(length_off=-10), "waiting", "408 Request Timeout"),
    # the way back
    "answer lost after COMMIT": way.trouble(Fault(answer_cut=0), "waiting", "no answer: ...", committed=True),
    "answer cut in its headers": way.trouble(Fault(answer_cut=30), "waiting", "no answer: ...", committed=True),
    "answer cut in its body": way.trouble(Fault(answer_cut=-5), "waiting", "no answer: ...", committed=True),
    "answer slow, in time": way.delivered(Fault(bytes_a_second=400)),
    "answer slow, beyond the timeout": way.too_slow,
    "answer is no HTTP": way.trouble(Fault(answer=GARBAGE), "waiting", "broken answer"),
    "answer is endless": way.trouble(Fault(answer=ENDLESS, endless=True), "waiting", "503 Service Unavailable"),
    "answer 200 is endless": way.delivered(Fault(edit_answer=way.without_end, endless=True)),
    "answer of 10 MB": way.trouble(
        Fault(answer=http_answer(503, bytes(10_000_000))), "waiting", "503 Service Unavailable"
    ),
    "early hints before the answer": way.delivered(Fault(edit_answer=lambda answer: HINTS + answer)),
    # statuses: contract 8
    "status 200": way.delivered(),
    "status 201": way.takes(201),
    "status 202": way.takes(202),
    "status 204": way.takes(204),
    "status 408": way.waits(408),
    "status 409": way.waits(409),
    "status 425": way.waits(425),
    "status 429": way.waits(429),
    "status 500": way.waits(500),
    "status 502": way.waits(502),
    "status 503": way.waits(503),
    "status 504": way.waits(504),
    "status 599": way.waits(599),
    "status 400": way.delivered(Fault(answer=http_answer(400)), requests=3),
    "status 422": way.delivered(Fault(answer=http_answer(422)), requests=3),
    "status 413": lines.too_large,
    "status 400 for a line alone": lines.refused_alone(400),
    "status 413 for a line alone": lines.refused_alone(413),
    "status 301": way.blocks(301),
    "status 302": way.blocks(302),
    "status 304": way.blocks(304),
    "status 308": way.blocks(308),
    "status 401": way.blocks(401),
    "status 403": way.blocks(403),
    "status 404": way.blocks(404),
    "status 405": way.blocks(405),
    "status 410": way.blocks(410),
    "status 418": way.blocks(418),
    "status 451": way.blocks(451),
    "status 501": way.blocks(501),
    "redirect is not followed": way.redirect,
    "wrong token": way.wrong_token,
    "receiver without a token": way.no_receiving,
    "address mistyped": way.no_such_path,
    # Retry-After
    "Retry-After in seconds": way.asked("7", 7_000, 7_000),
    "Retry-After 0": way.asked("0", 1_000, 1_000),
    "Retry-After as a date": way.asked("", 29_000, 30_000),
    "Retry-After huge": way.asked("9" * 30, 3_600_000, 3_600_000),
    "Retry-After long past": way.asked("Sun, 06 Nov 1994 08:49:37 GMT", 1_000, 1_000),
    "Retry-After is nonsense": way.asked("soon", 1_000, 2_000, binds=False),
    # lines
    "poison line among 500": lines.poison_among_500,
    "token of another site": lines.token_of_another_site,
    "unreadable line": lines.unreadable_line,
    "hostile site": lines.hostile_site,
    "10,000 facts in one document": lines.ten_thousand_facts,
    "gzip bomb": lines.gzip_bomb,
    "gzip of several members": lines.several_members,
    # ends that die, or cannot write
    "sender killed between send and confirm": ends.sender_killed_in_flight,
    "sender's disk full while it confirms": ends.sender_full_disk,
    "receiver killed before COMMIT": ends.receiver_killed_before_commit,
    "receiver killed after COMMIT": ends.receiver_killed_after_commit,
    "receiver stopped while it applies": ends.receiver_stopped_while_it_applies,
    "receiver's disk full": ends.receiver_full_disk,
    # again, late, changed
    "old batch replayed after a newer one": ends.old_batch_replayed,
    "same key with other bytes": ends.same_key_other_bytes,
    "key forgotten after 30 days": ends.key_forgotten_after_30_days,
    "late fact between send and confirm": ends.late_fact_in_flight,
    "visitor erased in a frozen batch": ends.erased_in_a_frozen_batch,
    "visitor erased between send and confirm": ends.erased_in_flight,
    "two shippers and a server on one file": ends.two_shippers,
    "secret rotated between two tries": ends.secret_rotated,
    # clocks, backups
    "sender's clock a year ahead": ends.sender_clock(YEAR_MS),
    "sender's clock a year behind": ends.sender_clock(-YEAR_MS),
    "sender's clock a year ahead, signed": ends.sender_clock_signed(YEAR_MS),
    "sender's clock a year behind, signed": ends.sender_clock_signed(-YEAR_MS),
    "receiver's clock a year ahead": ends.receiver_clock(YEAR_MS),
    "receiver's clock a year behind": ends.receiver_clock(-YEAR_MS),
    "receiver's clock a year ahead, signed": ends.receiver_clock_signed(YEAR_MS),
    "receiver's clock a year behind, signed": ends.receiver_clock_signed(-YEAR_MS),
    "sender restored from a backup": ends.sender_restored,
    "receiver restored from a backup": ends.receiver_restored,
    # a directory
    "directory full": folder.full,
    "directory read-only": folder.read_only,
    "directory is a file": folder.is_a_file,
    "directory and a hostile site": folder.and_a_hostile_site,
}

# Rows of the matrix that stand in files of their own: file and test.
ELSEWHERE = {
    "sender killed at every statement": ("test_faults_crash.py", "test_a_sender_that_dies_at_every_statement"),
    "sender killed while it notes a wait": ("test_faults_crash.py", "test_a_sender_that_dies_while_it_notes_a_wait"),
    "receiver killed at every statement": ("test_faults_crash.py", "test_a_receiver_that_dies_at_every_statement"),
    "sidecars that ship in a ring": ("test_faults_chains.py", "test_real_sidecars_in_a_ring_come_to_rest"),
    "a ring of full sessions": ("test_faults_chains.py", "test_a_ring_of_full_sessions_comes_to_rest"),
    "ClickHouse killed with SIGKILL": ("test_clickhouse_sink.py", "test_killed_while_it_takes_a_batch"),
    "ClickHouse without its tables": (
        "test_clickhouse_sink.py",
        "test_without_tables_it_is_blocked_until_they_are_made",
    ),
}


@pytest.mark.parametrize("name", MATRIX)
def test_a_fault(name: str, bench: Bench) -> None:
    """One row: see its function."""
    MATRIX[name](bench)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_row_that_stands_elsewhere_is_there(name: str) -> None:
    """So that the matrix cannot lose a row unseen."""
    file, test = ELSEWHERE[name]
    tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
