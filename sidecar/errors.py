"""What the project raises on purpose; translated once, at the edge: to an HTTP answer or to one line on stderr."""

OWN_ERROR = "the sidecar met an error of its own; its log says which"  # in an answer


class SidecarError(Exception):
    """Base of all: its text is one line for a person."""


class ConfigError(SidecarError):
    """A setting is wrong or unknown; names the setting, the value and what is allowed."""


class MalformedBeaconError(SidecarError):
    """The body is not JSON, or neither object nor array (HTTP 400)."""


class RejectedBeaconError(SidecarError):
    """The beacon holds no item, or too many (HTTP 422)."""


class StoreError(SidecarError):
    """The database cannot be used as asked: missing, of a newer version, not a database."""


class UnavailableError(SidecarError):
    """Nothing can be stored at the moment: queue full, disk full, shutting down (HTTP 503)."""

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DocumentError(SidecarError):
    """A line is not a session document that this version reads."""


class ReceiptError(SidecarError):
    """A received batch cannot be taken; `status` is the HTTP status to answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DestinationBusyError(SidecarError):
    """Another process is shipping from the same file."""
