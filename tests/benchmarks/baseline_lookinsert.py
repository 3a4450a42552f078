"""Server (c): look, create, insert, as it is usually written.

An ordinary synchronous endpoint, run in Starlette's thread pool (40 threads), with a connection of its own for each
request and the same durability as the sidecar's. Nothing in it is made slow on purpose. What it lacks is what such code
lacks: between looking for a session and creating it another request may create it. That beacon is answered 500 and
lost, and the benchmark counts it as failed.

The environment variable `LOOKINSERT_DATABASE` names its file.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

if TYPE_CHECKING:
    import sqlite3
else:
    from sqlite_utils.utils import sqlite3  # the module the sidecar uses, so both run the same version of SQLite

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE visitors (
    id INTEGER PRIMARY KEY,
    anonymous_id TEXT NOT NULL UNIQUE,
    first_seen INTEGER NOT NULL
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL UNIQUE,
    funnel_id TEXT NOT NULL,
    visitor_id INTEGER NOT NULL REFERENCES visitors (id),
    started_at INTEGER NOT NULL,
    avg_lcp REAL, avg_inp REAL, avg_cls REAL, avg_fcp REAL, avg_ttfb REAL
);
CREATE INDEX sessions_visitor ON sessions (visitor_id);
CREATE TABLE web_vitals (
    id INTEGER PRIMARY KEY,
    session_id INTEGER NOT NULL REFERENCES sessions (id),
    metric TEXT NOT NULL,
    metric_id TEXT NOT NULL,
    value REAL NOT NULL,
    rating TEXT,
    delta REAL,
    navigation_type TEXT,
    page_url TEXT NOT NULL,
    page_path TEXT,
    page_title TEXT,
    timestamp INTEGER NOT NULL
);
CREATE INDEX web_vitals_session ON web_vitals (session_id, metric);
"""


class Vital(BaseModel):
    """One web vital as the tracker sends it; times in epoch ms, values in ms (CLS has no unit)."""

    session_id: str = Field(alias="sessionId", min_length=1, max_length=128)
    anonymous_id: str = Field(alias="anonymousId", min_length=1, max_length=128)
    funnel_id: str = Field(alias="funnelId", default="default", max_length=128)
    metric: Literal["LCP", "INP", "CLS", "FCP", "TTFB"]
    value: float = Field(ge=0, le=10_000_000)
    id: str = Field(min_length=1, max_length=128)
    rating: str | None = None
    delta: float | None = None
    navigation_type: str | None = Field(alias="navigationType", default=None)
    page_url: str = Field(alias="pageUrl", max_length=2048)
    page_path: str | None = Field(alias="pagePath", default=None)
    page_title: str | None = Field(alias="pageTitle", default=None)
    timestamp: int


def connect() -> sqlite3.Connection:
    """A new connection to the file, with a busy timeout of 30 s."""
    conn = sqlite3.connect(os.environ["LOOKINSERT_DATABASE"], timeout=30)
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute("PRAGMA synchronous = FULL")
    return conn


def find_or_create_visitor(conn: sqlite3.Connection, vital: Vital) -> int:
    """The key of the vital's visitor."""
    row = conn.execute("SELECT id FROM visitors WHERE anonymous_id = ?", (vital.anonymous_id,)).fetchone()
    if row is not None:
        return int(row[0])
    now = int(time.time() * 1000)
    cursor = conn.execute("INSERT INTO visitors (anonymous_id, first_seen) VALUES (?, ?)", (vital.anonymous_id, now))
    return int(cursor.lastrowid or 0)


def find_or_create_session(conn: sqlite3.Connection, vital: Vital) -> int:
    """The key of the vital's session."""
    row = conn.execute("SELECT id FROM sessions WHERE session_id = ?", (vital.session_id,)).fetchone()
    if row is not None:
        return int(row[0])
    cursor = conn.execute(
        "INSERT INTO sessions (session_id, funnel_id, visitor_id, started_at) VALUES (?, ?, ?, ?)",
        (vital.session_id, vital.funnel_id, find_or_create_visitor(conn, vital), vital.timestamp),
    )
    return int(cursor.lastrowid or 0)


def track(body: bytes) -> JSONResponse:
    """Store one vital (JSON, about 0.45 KB): 200, or 422 for a wrong one, or 500 where SQLite refuses."""
    try:
        vital = Vital.model_validate_json(body)
    except ValidationError:
        return JSONResponse({"success": False}, 422)
    try:
        with closing(connect()) as conn, conn:
            session = find_or_create_session(conn, vital)
            conn.execute(
                "INSERT INTO web_vitals (session_id, metric, metric_id, value, rating, delta, navigation_type,"
                " page_url, page_path, page_title, timestamp) VALUES (:session, :metric, :id, :value, :rating,"
                " :delta, :navigation_type, :page_url, :page_path, :page_title, :timestamp)",
                {**vital.model_dump(), "session": session},
            )
            conn.execute(
                f"UPDATE sessions SET avg_{vital.metric.lower()} ="
                " (SELECT AVG(value) FROM web_vitals WHERE session_id = ? AND metric = ?) WHERE id = ?",
                (session, vital.metric, session),
            )
    except sqlite3.Error as error:
        return JSONResponse({"success": False, "error": str(error)}, 500)
    return JSONResponse({"success": True})


async def endpoint(request: Request) -> JSONResponse:
    """Read the body on the loop, then run `track` in the thread pool, as a framework does for a `def` endpoint."""
    return await run_in_threadpool(track, await request.body())


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Make the tables in the (new, empty) file."""
    with closing(connect()) as conn:
        conn.executescript(SCHEMA)
    yield


app = Starlette(routes=[Route("/api/track/web-vitals", endpoint, methods=["POST"])], lifespan=lifespan)
