"""What the demo raises on purpose."""

from __future__ import annotations

from sidecar.errors import SidecarError


class DemoError(SidecarError):
    """The demo cannot go on; `detail` is what may explain it: the end of a log, or what the sidecar answered."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
