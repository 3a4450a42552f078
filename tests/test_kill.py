"""SIGKILL under load: what was answered 200 is in the file."""

from __future__ import annotations

import json
import random
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import httpx2
import pytest

from sidecar.store.database import open_read_only
from tests.servers import Server, event, sidecar, vital

KILLS = 20
SENDERS = 8


class Load:
    """Browsers that send until told to stop, and remember what was acknowledged."""

    def __init__(self, clients: list[httpx2.Client], round_number: int) -> None:
        self._clients = clients
        self._round = round_number
        self._stop = threading.Event()
        self.first = threading.Event()
        self.vitals: list[str] = []
        self.events: list[str] = []
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)]

    def _send(self, sender: int) -> None:
        for number in range(10_000):
            session = f"s-{self._round}-{sender}-{number // 10}"
            name = f"{self._round}-{sender}-{number}"
            kind = "events" if number % 5 == 4 else "web-vitals"
            item = event(session, eventId=name) if kind == "events" else vital(session, id=name)
            try:
                answer = self._clients[sender].post(f"/api/track/{kind}", content=json.dumps(item))
            except httpx2.TransportError:
                return  # killed
            assert answer.status_code == 200, answer.text
            (self.events if kind == "events" else self.vitals).append(name)
            self.first.set()
            if self._stop.is_set():
                return

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Killed at random moments, restarted on the same file each time; then every acknowledged item is there."""
    moments = random.Random(20)
    vitals: list[str] = []
    events: list[str] = []
    with ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "sidecar.db"))
        clients = [stack.enter_context(server.client()) for _ in range(SENDERS)]
        for number in range(KILLS):
            load = Load(clients, number)
            load.start()
            assert load.first.wait(30)
            time.sleep(moments.uniform(0.05, 0.4))
            server.kill()
            load.join()
            vitals += load.vitals
            events += load.events
            server.restart()
    assert len(vitals) > KILLS * SENDERS
    with closing(open_read_only(server.database)) as conn:
        held_vitals = {row[0] for row in conn.execute("SELECT id FROM web_vitals")}
        held_events = {row[0] for row in conn.execute("SELECT event_id FROM events")}
    assert set(vitals) - held_vitals == set()
    assert set(events) - held_events == set()
    checked = sidecar("verify", DATABASE=str(server.database))
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert "FOREIGN KEY" not in server.log.read_text()
