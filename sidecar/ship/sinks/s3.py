"""Batches as objects: `s3://bucket/prefix` gets the names that a directory gets, each put once (contract 8).

Credentials, region and endpoint are the usual ones of the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, or the role of the machine; a pair in the address goes before them.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import anyio.to_thread

from sidecar.errors import ConfigError
from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks.directory import HOLDS_OTHER, STORED, STORED_BEFORE, place_batch
from sidecar.ship.sinks.http import CONNECT_TIMEOUT_S, TIMEOUT_S, UPLOAD_BYTES_A_SECOND, judge_status, public_address
from sidecar.store.outbox import Batch

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError
    from obstore.store import S3Store
except ImportError as error:
    raise ConfigError(
        "SIDECAR_UPSTREAM_URL: s3:// needs the package obstore: pip install 'vitals-sidecar[s3]'"
    ) from error

CLOSE_WAIT_S = 2.0
_STEP_BYTES = 4 * 1024 * 1024  # a timeout is of a store, not of a request: one store for each size of a body
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

# obstore says what happened in a text only: https://docs.rs/object_store/latest/object_store/enum.Error.html
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_ASKED_FOR_ROLE = re.compile(r"/latest/(api/token|meta-data/)|http://169\.254\.170\.2/")
_TLS = re.compile(r"(?:InvalidCertificate|InvalidMessage|AlertReceived)\( (?:Other\( OtherError\( )?(\w{1,40})")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_OS_ERROR = re.compile(r'Os \{ code: \d+, kind: \w+, message: "([^"]{1,100})"')
_AGAIN_CODES = {"RequestTimeout"}  # a 400
_LARGE_CODES = {"EntityTooLarge"}  # likewise


def _judge(status: int, code: str) -> Verdict:
    """The table of contract 8, but that a store never looks into a body: a 400 is about the request, not a line."""
    if code in _AGAIN_CODES:
        return Verdict.AGAIN
    if code in _LARGE_CODES:
        return Verdict.TOO_LARGE
    verdict = judge_status(status)
    return Verdict.BLOCKED if verdict is Verdict.REFUSED else verdict


def read_failure(error: Exception) -> Answer:
    """What the failure of an attempt means; the texts name no address and no key."""
    text = " ".join(str(error).split())
    if _ASKED_FOR_ROLE.search(text):
        return Answer(Verdict.BLOCKED, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    status = _STATUS.search(text)
    if status:
        number, code, message = int(status[1]), _CODE.search(text), _MESSAGE.search(text)
        said = code[1] if code else ""
        named = HTTPStatus(number).phrase if number in {*HTTPStatus} else ""
        return Answer(_judge(number, said), f"{number} {said or named}".strip(), message[1] if message else "")
    if "BareRedirect" in text:
        return Answer(Verdict.BLOCKED, "a redirect: is AWS_REGION the region of the bucket?")
    refused = _TLS.search(text)
    if refused:
        return Answer(Verdict.BLOCKED, f"TLS refused: {_CAPITAL.sub(' ', refused[1]).lower()}")
    if "dns error" in text:
        return Answer(Verdict.AGAIN, "no answer: the host name was not found")
    if "kind: Timeout" in text or "TimedOut" in text:
        return Answer(Verdict.AGAIN, "no answer in time")
    failed = _OS_ERROR.search(text)
    return Answer(Verdict.AGAIN, f"no answer: {failed[1].lower() if failed else 'the connection was lost'}")


def _read_endpoint(environment: Mapping[str, str]) -> str | None:
    """The address of the server where it is not AWS's own. Raises ConfigError."""
    name = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if name is None:
        return None
    endpoint = environment[name]
    try:
        parts = urlsplit(endpoint)
        is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        is_right = False
    if not is_right or any(letter <= " " for letter in endpoint):
        raise ConfigError(f"{name}: must be an address like https://host or http://host:port")
    return endpoint


class S3Sink:
    """A bucket, or a prefix in one. It has to allow PutObject, and GetObject: a repeat is compared with what is there.

    The endpoint counts as a part of the address: another one is another destination. Raises ValueError where the
    address is wrong, ConfigError where the environment does not allow for a store.
    """

    def __init__(self, url: str, *, environment: Mapping[str, str] = os.environ, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        pair, _, bucket = parts.netloc.rpartition("@")
        if not _BUCKET.fullmatch(bucket) or parts.query or parts.fragment:
            raise ValueError("must be an address like s3://bucket/prefix; the endpoint is AWS_ENDPOINT_URL")
        self._bucket = bucket
        self._prefix = unquote(parts.path).strip("/")
        self._config: dict[str, Any] = {}
        endpoint = _read_endpoint(environment)
        if endpoint:
            self._config["endpoint"] = endpoint
        if pair:
            key, _, secret = pair.partition(":")
            self._config |= {"access_key_id": unquote(key), "secret_access_key": unquote(secret)}
        where = f"?endpoint={public_address(endpoint).rstrip('/')}" if endpoint else ""
        self._address = f"s3://{bucket}/{quote(self._prefix)}{where}"
        self._allow_http = endpoint is not None and urlsplit(endpoint).scheme == "http"
        self._timeout_s = timeout_s
        self._stores: dict[int, S3Store] = {}
        self._busy = threading.Lock()
        try:
            self._open_store(0)
        except (BaseError, ValueError) as error:
            reason, *_ = str(error).splitlines()
            raise ConfigError(f"SIDECAR_UPSTREAM_URL: {reason}") from error

    def __repr__(self) -> str:
        return f"<S3Sink {self._address}>"

    @property
    def address(self) -> str:
        """Bucket, prefix and endpoint, without credentials."""
        return self._address

    async def send(self, batch: Batch, now: int) -> Answer:  # noqa: ARG002 - signed by the clock of the machine
        """Put one object. In a thread: with obstore's own coroutines a process in four aborted at its end."""
        return await anyio.to_thread.run_sync(self._attempt, batch, abandon_on_cancel=True)

    async def close(self) -> None:
        """Wait a moment for an attempt that was cancelled: it must not come back while the process ends."""
        if await anyio.to_thread.run_sync(self._busy.acquire, True, CLOSE_WAIT_S):
            self._busy.release()

    def _open_store(self, size: int) -> S3Store:
        """The store whose requests have the time that `size` bytes take on a slow line (1 Mbit/s), and an answer."""
        steps = size // _STEP_BYTES
        if steps not in self._stores:
            timeout_s = self._timeout_s + steps * _STEP_BYTES / UPLOAD_BYTES_A_SECOND
            self._stores[steps] = S3Store(
                self._bucket,
                prefix=self._prefix or None,
                config=self._config,  # type: ignore[arg-type]  # its keys are those of S3Config
                client_options={
                    "allow_http": self._allow_http,
                    "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, self._timeout_s)),
                    "timeout": timedelta(seconds=timeout_s),
                },
                retry_config={"max_retries": 0},  # one attempt is one attempt: the waits are the shipper's
            )
        return self._stores[steps]

    def _attempt(self, batch: Batch) -> Answer:
        try:
            key = "/".join(place_batch(batch))
        except ValueError as error:
            return Answer(Verdict.REFUSED, str(error))
        with self._busy:
            try:
                return _put_once(self._open_store(len(batch.body)), key, batch.body)
            except Exception as error:
                return read_failure(error)
            except BaseException as error:
                if type(error).__name__ != "PanicException":  # Rust's, not importable; a line end in a key is enough
                    raise
                return Answer(Verdict.BLOCKED, "the request cannot be made: are the AWS_ variables well-formed?")


def _put_once(store: S3Store, key: str, body: bytes) -> Answer:
    try:
        _put(store, key, body, "create")
    except AlreadyExistsError:
        try:
            return _recognise(store, key, body)
        except FileNotFoundError:  # AWS answers 409 to one of two puts at a time, and may keep neither
            return Answer(Verdict.AGAIN, "409 Conflict")
    except NotImplementedError:  # what obstore raises where AWS_CONDITIONAL_PUT=disabled
        return _look_then_put(store, key, body)
    except BaseError as error:
        if "status code: 501" not in str(error):
            raise
        return _look_then_put(store, key, body)
    return STORED


def _look_then_put(store: S3Store, key: str, body: bytes) -> Answer:
    """For a server without conditional puts; nobody else writes under the id of a batch."""
    try:
        return _recognise(store, key, body)
    except FileNotFoundError:
        _put(store, key, body, "overwrite")
        return STORED


def _put(store: S3Store, key: str, body: bytes, mode: Literal["create", "overwrite"]) -> None:
    obstore.put(store, key, body, mode=mode, use_multipart=False, attributes={"Content-Type": "application/gzip"})


def _recognise(store: S3Store, key: str, body: bytes) -> Answer:
    """Whether what is there already is this batch. Raises FileNotFoundError where nothing is."""
    found = obstore.get(store, key)
    is_same = found.meta["size"] == len(body) and found.bytes() == body
    return STORED_BEFORE if is_same else HOLDS_OTHER
