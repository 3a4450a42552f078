"""Sends a step of the plan over real HTTP, and counts what the answers say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2

from sidecar.demo.errors import DemoError
from sidecar.demo.report import OUTCOMES
from sidecar.demo.traffic import Beacon, Burst, Step

BURSTS_AT_ONCE = 6
CONNECTIONS_MAX = 24  # a burst is at most four beacons
TIMEOUT_S = 10.0


async def _send(client: httpx2.AsyncClient, beacon: Beacon, counts: Counter[str]) -> None:
    page = urlsplit(beacon.page_url)
    headers = {
        "Content-Type": beacon.content_type,
        "User-Agent": beacon.user_agent,
        "Referer": beacon.page_url,
        "Origin": f"{page.scheme}://{page.netloc}",
    }
    counts["sent"] += 1
    answer = await client.post(f"/api/track/{beacon.path}", content=beacon.body, headers=headers)
    said = answer.json() if answer.status_code == 200 else {}
    if said.get("success") is not True or said["rejected"]:
        raise DemoError("the sidecar did not take a beacon", f"HTTP {answer.status_code}: {answer.text[:500]}")
    counts["acknowledged"] += 1
    for outcome in OUTCOMES:
        counts[outcome] += said[outcome]


async def _work(client: httpx2.AsyncClient, bursts: Iterator[Burst], counts: Counter[str]) -> None:
    for burst in bursts:  # shared by all workers: each takes the next one
        async with asyncio.TaskGroup() as group:
            for beacon in burst:
                group.create_task(_send(client, beacon, counts))


async def _drive(sidecar_url: str, step: Step) -> Counter[str]:
    counts: Counter[str] = Counter()
    bursts = iter(step.bursts)
    limits = httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
    async with (
        httpx2.AsyncClient(
            base_url=sidecar_url,
            limits=limits,
            timeout=TIMEOUT_S,
            trust_env=False,
            verify=False,  # plain HTTP on this machine: to read whom the system trusts takes 50 ms
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(BURSTS_AT_ONCE):
            group.create_task(_work(client, bursts, counts))
    return counts


def drive(sidecar_url: str, step: Step) -> Counter[str]:
    """Send all beacons of a step: `sent`, `acknowledged`, and items by outcome.

    Raises DemoError where an answer is no acknowledgement of every item, or there is none.
    """
    try:
        return asyncio.run(_drive(sidecar_url, step))
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, httpx2.TransportError):
            raise DemoError("the sidecar did not answer a beacon", f"{type(error).__name__}: {error}") from error
        raise error from None
