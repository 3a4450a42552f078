"""What the event loop has to say in one turn goes out in one burst in the next, each answer in one write.

uvicorn writes the head of an answer and its body one after the other, and uvloop sends each at once: two system calls
and two packets. And where a group of answers goes out one by one between other work, whoever reads them falls asleep
between two of them; to wake it is the larger part of a write. Together a tenth of the beacons a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

HELD_MAX = 64 * 1024  # bytes that a connection keeps for the next turn


class Burst:
    """The connections of one loop that have something to send."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Transport] = []

    def add(self, transport: Transport) -> None:
        """Flush it in the next turn."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(transport)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            try:
                transport.flush()
            except Exception as error:  # one connection's trouble is not the others'
                transport.abort()
                self._loop.call_exception_handler({"message": "an answer could not be sent", "exception": error})


class Transport:
    """A transport that keeps what is written until the loop's next turn, or until it is HELD_MAX bytes."""

    __slots__ = ("_burst", "_held", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, burst: Burst) -> None:
        self._transport = transport
        self._burst = burst
        self._held: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """As of a transport."""
        if not self._held:
            self._burst.add(self)
        self._held.append(data)
        self._size += len(data)
        if self._size >= HELD_MAX:
            self.flush()

    def writelines(self, parts: Iterable[bytes]) -> None:
        """As of a transport."""
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        """As of a transport: after what was written."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """As of a transport: what was written is sent."""
        self.flush()
        self._transport.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As of a transport: what follows is the other protocol's."""
        self.flush()
        self._transport.set_protocol(protocol)

    def flush(self) -> None:
        """Send what is held; nothing where the connection has gone."""
        held, self._held, self._size = self._held, [], 0
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))
