"""Batches into ClickHouse, 18.16 or today's, over its HTTP interface: `clickhouse://user:password@host:port/database`.

A batch that is sent again, or late, changes nothing: the tables keep the highest revision of a session.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import anyio.to_thread
import httpx2

from sidecar import __version__
from sidecar.errors import SidecarError
from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks import clickhouse_tables as tables
from sidecar.ship.sinks.http import (
    ANSWER_BYTES_MAX,
    CONNECT_TIMEOUT_S,
    TIMEOUT_S,
    UPLOAD_BYTES_A_SECOND,
    judge_status,
    read_failure,
)
from sidecar.ship.sinks.tls import load_tls
from sidecar.store.outbox import Batch

DETAIL_MAX = 300
_KEEPALIVE_S = 2.0  # servers drop idle connections after 3 s (18.16): a race that would count as "no answer"
_SCHEMES = {"clickhouse": ("http", 8123), "clickhouses": ("https", 8443)}
_DATABASE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CODE = re.compile(rb"Code: ([0-9]{1,5})\b")
_INIT = "run `sidecar upstream init`"

# What a profile may have set so that OK would not mean stored. Sent only to servers that know them and think otherwise.
_WANTED = {
    "wait_for_async_insert": "1",
    "input_format_allow_errors_num": "0",
    "input_format_allow_errors_ratio": "0",
    "input_format_skip_unknown_fields": "0",
}
_KNOWN_TO_ALL = "max_block_size"  # by this we know that it is a ClickHouse that answers

# https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp; the same numbers since 2017.
# REFUSED only what is of a row alone: what concerns every row would park every session, one by one.
_CODES: dict[int, tuple[Verdict, str]] = {
    **dict.fromkeys((60, 81), (Verdict.BLOCKED, f"the tables are missing: {_INIT}")),
    **dict.fromkeys((8, 10, 16, 47), (Verdict.BLOCKED, f"the tables lack columns of this version: {_INIT}")),
    **dict.fromkeys((192, 193, 194, 516), (Verdict.BLOCKED, "user or password refused")),
    **dict.fromkeys((164, 195, 291, 452, 497), (Verdict.BLOCKED, "the user may not do this")),
    **dict.fromkeys((36, 46, 48, 62, 115), (Verdict.BLOCKED, "the server does not understand the statement")),
    **dict.fromkeys(
        (6, 7, 25, 26, 27, 38, 41, 53, 69, 70, 72, 117, 130, 131, 190, 349, 376, 467, 469, 691),
        (Verdict.REFUSED, "a row was refused"),
    ),
    **dict.fromkeys((241, 173), (Verdict.AGAIN, "not enough memory")),
    **dict.fromkeys((74, 75, 76, 77, 243), (Verdict.AGAIN, "the server cannot write")),
    **dict.fromkeys((159, 160, 209), (Verdict.AGAIN, "not done in time")),
    **dict.fromkeys((201, 202, 203, 252, 439), (Verdict.AGAIN, "too much at once")),
    **dict.fromkeys((242, 225, 254, 285, 286, 319, 999), (Verdict.AGAIN, "the table takes nothing at the moment")),
    **dict.fromkeys((49, 210, 236, 279, 394, 473, 1000, 1001, 1002), (Verdict.AGAIN, "the server failed")),
    **dict.fromkeys((3, 32, 33, 354), (Verdict.AGAIN, "the rows did not arrive whole")),
}
_OF_USERS = {192, 193, 194, 516}  # what the server says of these names the user


class _Said(NamedTuple):
    """An answer of the server. `body` as far as it is read."""

    status: int
    code: str
    body: bytes
    retry_after: str | None

    @property
    def rows(self) -> list[list[str]]:
        """The rows of an answer in TabSeparated."""
        return [line.split("\t") for line in self.body.decode(errors="replace").splitlines()]


def _shorten(body: bytes) -> str:
    text = body[:4096].decode(errors="replace")
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return shown if len(shown) <= DETAIL_MAX else shown[: DETAIL_MAX - 1] + "…"


def read_answer(status: int, code_header: str, body: bytes, *, retry_after: str | None = None) -> Answer:
    """What ClickHouse's answer to an INSERT means: by `Code: N`, which may come after a 200; else by the status.

    `code_header` is X-ClickHouse-Exception-Code ('' where there is none); an INSERT that worked has no body.
    """
    found = _CODE.search(body)
    number = int(code_header) if code_header.isascii() and code_header.isdigit() else 0
    number = number or (int(found[1]) if found else 0)
    if number:
        verdict, words = _CODES.get(number) or (judge_status(status), "")
        if verdict is Verdict.TAKEN:
            verdict = Verdict.AGAIN  # a failure after the 200 was sent
        said = "" if number in _OF_USERS else _shorten(body)
        return Answer(verdict, f"ClickHouse code {number}" + (f": {words}" if words else ""), said, retry_after)
    verdict = judge_status(status)
    if verdict is Verdict.TAKEN and body.strip():
        return Answer(Verdict.BLOCKED, "the answer is not ClickHouse's", _shorten(body))
    return Answer(verdict, f"HTTP {status}", "" if verdict is Verdict.TAKEN else _shorten(body), retry_after)


class ClickHouseSink:
    """A database of ClickHouse whose tables `prepare` made. Raises ValueError where the address has none."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        scheme, port = _SCHEMES[parts.scheme]
        self.database = unquote(parts.path.strip("/")) or "default"
        if not _DATABASE.fullmatch(self.database) or parts.query:
            raise ValueError("must be like clickhouse://user:password@host:8123/database, without a query")
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        host = f"{host}:{parts.port or port}"
        self._url = f"{scheme}://{host}/"
        self._address = f"{parts.scheme}://{host}/{self.database}"
        pair = f"{unquote(parts.username or 'default')}:{unquote(parts.password or '')}"
        self._authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        self._timeout_s = timeout_s
        self._tls = tls
        self._client: httpx2.AsyncClient | None = None
        self._settings: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"<ClickHouseSink {self._address}>"

    @property
    def address(self) -> str:
        """Where it sends to, without credentials."""
        return self._address

    async def send(self, batch: Batch, now: int) -> Answer:  # noqa: ARG002 - nothing is signed
        """One attempt: every INSERT of the batch has to succeed. After tombstones, what they match is deleted."""
        try:
            async with asyncio.timeout(self._timeout_s + batch.body_bytes / UPLOAD_BYTES_A_SECOND):
                return await self._send(batch)
        except tables.UnreadableLineError as error:
            return Answer(Verdict.REFUSED, str(error))
        except (httpx2.TransportError, TimeoutError, OSError) as error:
            return read_failure(error)

    async def close(self) -> None:
        """Close the connections; the next attempt asks for the settings again."""
        client, self._client, self._settings = self._client, None, None
        if client:
            await client.aclose()

    def statements(self) -> list[str]:
        """What `prepare` runs on an empty server, as SQL to print; before it, in a comment, a query to begin with."""
        example = tables.fleet_p75(self.database).replace("\n", "\n-- ")
        return [f"-- p75:\n-- {example}\n", *(f"{statement};\n" for statement in tables.statements(self.database))]

    async def prepare(self) -> list[str]:
        """Make the database, tables and views that are missing; a line of each. Raises SidecarError.

        Views hold nothing, so that those of another version are made anew. A table or view of somebody else stays.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._prepare()
        except (httpx2.TransportError, TimeoutError, OSError) as error:
            raise SidecarError(f"{self._address}: {read_failure(error).text}") from None
        finally:
            await self.close()

    async def _send(self, batch: Batch) -> Answer:
        if self._settings is None:
            names = ", ".join(tables.literal(name) for name in (_KNOWN_TO_ALL, *_WANTED))
            said = await self._ask(
                f"SELECT name, value FROM system.settings WHERE name IN ({names}) FORMAT TabSeparated"
            )
            held = {row[0]: row[-1] for row in said.rows}
            if said.status != 200 or _KNOWN_TO_ALL not in held:
                return read_answer(said.status, said.code, said.body or b"(nothing)", retry_after=said.retry_after)
            self._settings = {name: value for name, value in _WANTED.items() if held.get(name, value) != value}
        holds_tombstones = batch.holds_tombstones
        statement = tables.insert(self.database, "tombstones" if holds_tombstones else "sessions")
        requests = tables.pack_rows(batch)
        answer = Answer(Verdict.TAKEN, "HTTP 200")
        while (packed := await anyio.to_thread.run_sync(next, requests, None)) is not None:
            # Always packed: of a plain body that breaks off between two rows an old server takes what came as the whole
            headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
            said = await self._post(packed, {"query": statement, **self._settings}, headers)
            answer = read_answer(said.status, said.code, said.body, retry_after=said.retry_after)
            if answer.verdict is not Verdict.TAKEN:
                return answer
        if holds_tombstones:
            statements = tables.erase(self.database, batch)
            while (erasure := await anyio.to_thread.run_sync(next, statements, None)) is not None:
                said = await self._ask(erasure)
                answer = read_answer(said.status, said.code, said.body, retry_after=said.retry_after)
                if answer.verdict is not Verdict.TAKEN:
                    return answer
        return answer

    async def _prepare(self) -> list[str]:
        made = []
        within = tables.literal(self.database)
        if not await self._read(f"SELECT name FROM system.databases WHERE name = {within} FORMAT TabSeparated"):
            await self._read(tables.create_database(self.database))
            made.append(f"database {self.database}: made")
        views = tables.create_views(self.database)
        engines = await self._find(*tables.TABLES, *views)
        for name, statement in tables.create_tables(self.database).items():
            if name not in engines:
                await self._read(statement)
            made.append(f"table {name}: {'there already' if name in engines else 'made'}")
        for name, statement in views.items():
            if name in engines:
                await self._read(f"DROP TABLE {tables.quote(self.database)}.{name}")
            await self._read(statement)
            made.append(f"view {name}: {'made anew' if name in engines else 'made'}")
        return made

    async def _find(self, *names: str) -> dict[str, str]:
        """The engines of those of the tables and views that are there. Raises SidecarError where one is not ours."""
        listed = ", ".join(tables.literal(name) for name in names)
        where = f"WHERE database = {tables.literal(self.database)} AND %s IN ({listed}) FORMAT TabSeparated"
        engines = {
            row[0]: row[1] for row in await self._read(f"SELECT name, engine FROM system.tables {where % 'name'}")
        }
        columns: dict[str, set[str]] = {}
        for table, column in await self._read(f"SELECT table, name FROM system.columns {where % 'table'}"):
            columns.setdefault(table, set()).add(column)
        for name, engine in engines.items():
            wanted = tables.TABLES.get(name, tables.VIEW_COLUMNS)
            is_of_kind = "ReplacingMergeTree" in engine if name in tables.TABLES else engine == "View"
            if not is_of_kind or not set(wanted) <= columns.get(name, set()):
                raise SidecarError(f"{self._address} has another {name}: choose a database of its own for the sidecar")
        return engines

    async def _read(self, statement: str) -> list[list[str]]:
        """The rows of an answer in TabSeparated. Raises SidecarError."""
        said = await self._ask(statement)
        if said.status != 200 or said.code or _CODE.match(said.body):
            raise SidecarError(f"{self._address}: {read_answer(said.status, said.code, said.body).text}")
        return said.rows

    async def _ask(self, statement: str) -> _Said:
        return await self._post(statement.encode(), {}, {"Content-Type": "text/plain; charset=utf-8"})

    async def _post(self, content: bytes, parameters: dict[str, str], headers: dict[str, str]) -> _Said:
        if self._client is None:
            if self._tls is None:
                self._tls = await load_tls(self._url)
            self._client = httpx2.AsyncClient(
                verify=self._tls,
                # a body is written in one go, which may take long on a slow line: the callers bound the whole
                timeout=httpx2.Timeout(None, connect=min(CONNECT_TIMEOUT_S, self._timeout_s)),
                limits=httpx2.Limits(max_connections=1, keepalive_expiry=_KEEPALIVE_S),
                follow_redirects=False,
            )
        common = {
            "Authorization": self._authorization,
            "Accept-Encoding": "identity",  # an answer is read up to a bound: packed, it could unpack to anything
            "User-Agent": f"vitals-sidecar/{__version__}",
        }
        sent: dict[str, Any] = {"content": content, "params": parameters, "headers": common | headers}
        async with self._client.stream("POST", self._url, **sent) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    break
            code = response.headers.get("x-clickhouse-exception-code", "")
            return _Said(
                response.status_code, code, bytes(body[:ANSWER_BYTES_MAX]), response.headers.get("retry-after")
            )
