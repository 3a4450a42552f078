"""The sidecar without HTTP: the same functions on the same kind of file, for tests that need thousands of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sidecar.ingest.client import read_user_agent
from sidecar.ingest.enrich import Rules, Source, enrich
from sidecar.ingest.place import NoPlaces
from sidecar.ingest.wire import parse_events, parse_web_vitals
from sidecar.model import Fact
from sidecar.store.database import immediate, open_database, snapshot
from sidecar.store.facts import Recording, record
from sidecar.store.lines import export_all
from sidecar.store.verify import verify

CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
RULES = Rules(
    site="default",
    ip_privacy="truncate",
    respect_dnt=True,
    require_consent=False,
    keep_bots=False,
    places=NoPlaces(),
)
TIMEOUT_MS = 1_800_000


def dump(body: object) -> bytes:
    """A beacon's bytes."""
    return json.dumps(body).encode()


def read(
    path: str, body: bytes, now: int, user_agent: str = CHROME, address: str = "127.0.0.1", rules: Rules = RULES
) -> list[Fact | str]:
    """Facts of a beacon by position; the reason where an item was refused."""
    parse = parse_web_vitals if path == "web-vitals" else parse_events
    items, rejected = parse(body, None)
    source = Source(user_agent, address, None, False, False, b"salt", now)
    facts, dropped = enrich(items, source, rules)
    by_position: dict[int, Fact | str] = {refusal.position: refusal.reason for refusal in rejected + dropped}
    by_position |= dict(facts)
    return [by_position[position] for position in sorted(by_position)]


class LocalSidecar:
    """One file and a clock that stands where it is set (`now`, ms)."""

    def __init__(self, path: Path, now: int, rules: Rules = RULES) -> None:
        self.path = path
        self.now = now
        self.rules = rules
        self.conn = open_database(path)
        self.conn.execute("PRAGMA synchronous = OFF")  # thousands of runs; durability has tests of its own

    def __enter__(self) -> LocalSidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    def send(self, path: str, body: object, user_agent: str = CHROME, address: str = "127.0.0.1") -> list[str]:
        """Deliver one beacon; the outcome of each item."""
        said = read(path, dump(body), self.now, user_agent, address, self.rules)
        facts = [(position, fact) for position, fact in enumerate(said) if not isinstance(fact, str)]
        outcomes = ["rejected"] * len(said)
        if facts:
            with immediate(self.conn):
                [recorded] = record(self.conn, [Recording(facts, self.now)])
            for judged in recorded.judged:
                outcomes[judged.position] = str(judged.outcome)
        return outcomes

    def export(self) -> list[str]:
        """The lines of `sidecar export`."""
        with snapshot(self.conn):
            return list(export_all(self.conn, self.now, TIMEOUT_MS))

    def export_documents(self) -> list[dict[str, Any]]:
        """The documents of `sidecar export`, with `revision` 0 and `finished` false: what the law speaks of."""
        return [json.loads(line) | {"revision": 0, "finished": False} for line in self.export()]

    def findings(self) -> list[str]:
        """What `sidecar verify` finds."""
        with snapshot(self.conn):
            return [str(difference) for difference in verify(self.conn, lambda: None)]


def agent_of(user_agent: str) -> dict[str, str | None]:
    """What the product reads in a User-Agent, as the reference wants it."""
    agent = read_user_agent(user_agent)
    names = ("deviceType", "browserName", "browserVersion", "osName", "osVersion")
    return dict(zip(names, agent[:5], strict=True))
