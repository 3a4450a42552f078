"""Beacons as they come: formats, limits, per-item refusals. Bytes in, items out.

A wrong required field rejects its item; an optional one is left out and the item kept (contract: "a good vital is not
lost for a bad title"). Nothing here knows the store or HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from math import isfinite
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails, from_json

from sidecar.canonical import from_any_iso, to_json
from sidecar.errors import MalformedBeaconError, RejectedBeaconError
from sidecar.model import METRICS, NAVIGATION_TYPES, RATINGS, SAFE_INTEGER_MAX, Claim, Page, Rejection

ITEMS_MAX = 100
ITEM_BYTES_MAX = 16 * 1024
NESTING_MAX = 16
ID_MAX = 128
URL_MAX = 2048
TITLE_MAX = 512
DEVICE_TEXT_MAX = 128
VALUE_MAX = 10_000_000

Id = Annotated[str, StringConstraints(min_length=1, max_length=ID_MAX)]
Integer = Annotated[int, Field(ge=-SAFE_INTEGER_MAX, le=SAFE_INTEGER_MAX)]
Finite = Annotated[float, Field(ge=-SAFE_INTEGER_MAX, le=SAFE_INTEGER_MAX, allow_inf_nan=False)]
Metric = Annotated[str, StringConstraints(pattern=f"^(?i:{'|'.join(METRICS)})$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", defer_build=False)


class _Device(_Strict):
    deviceType: str | None = None
    browserName: str | None = None
    browserVersion: str | None = None
    osName: str | None = None
    osVersion: str | None = None
    screenWidth: Integer | None = None
    screenHeight: Integer | None = None


class _Vital(_Device):
    """One item of contract 2.1, aliases already resolved."""

    sessionId: Id
    anonymousId: Id | None = None
    funnelId: Id | None = None
    metric: Metric
    value: Annotated[float, Field(ge=0, le=VALUE_MAX, allow_inf_nan=False)]
    id: Id | None = None
    timestamp: Any
    pageUrl: Annotated[str, StringConstraints(min_length=1)]
    seq: Annotated[int, Field(ge=0, le=SAFE_INTEGER_MAX)] = 0
    rating: Annotated[str, StringConstraints(pattern="^(?i:good|needs[-_]improvement|poor)$")] | None = None
    delta: Finite | None = None
    navigationType: str | None = None
    pagePath: str | None = None
    pageTitle: str | None = None


class _Event(_Strict):
    """The top of one event of contract 2.2; its context is read part by part, since each part is optional."""

    eventId: Id | None = None
    eventName: Id
    funnelId: Id | None = None
    properties: dict[str, Any] | None = None
    timestamp: Any
    context: dict[str, Any]


class _EventDevice(_Device):
    userAgent: str | None = None
    ipAddress: str | None = None


class _EventPage(_Strict):
    url: str | None = None
    path: str | None = None
    title: str | None = None
    referrer: str | None = None


class _Session(_Strict):
    sessionId: Id


class _User(_Strict):
    anonymousId: Id | None = None


class Device(NamedTuple):
    """What an item says of its client: device, browser and OS count together; sizes in CSS pixels."""

    device_type: str | None
    browser_name: str | None
    browser_version: str | None
    os_name: str | None
    os_version: str | None
    screen_width: int | None
    screen_height: int | None


class VitalItem(NamedTuple):
    """A web vital as sent. `session_id` None: an object of the web-vitals library itself, see `Source` in enrich."""

    position: int
    session_id: str | None
    anonymous_id: str | None
    funnel_id: str | None
    metric: str
    value: float
    id: str
    timestamp: int | None
    page: Page | None
    seq: int
    rating: str | None
    delta: float | None
    navigation_type: str | None
    device: Device
    user_agent: str | None
    address: str | None
    consent: bool


class EventItem(NamedTuple):
    """An event as sent. `properties` and `context` are canonical JSON texts, `utm` and `click_ids` as parsed."""

    position: int
    session_id: str
    anonymous_id: str | None
    funnel_id: str | None
    id: str
    name: str
    properties: str | None
    timestamp: int
    page: Page | None
    referrer: str | None
    context: str | None
    utm: Any
    click_ids: Any
    device: Device
    user_agent: str | None
    address: str | None
    consent: bool


Item = VitalItem | EventItem


class ItemError(ValueError):
    """One item is refused; the text is its reason."""


# --- bodies ----------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_PARSED_DEPTH_MAX = NESTING_MAX + 8  # what is deeper is cut before parsing; what is left is still refused as too deep


def _cut_depth(text: str) -> str:
    """The text with containers below `_PARSED_DEPTH_MAX` replaced by 0: one deep item must not stop the parser."""
    kept: list[str] = []
    start = depth = 0
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark in "[{":
            if depth == _PARSED_DEPTH_MAX:
                kept.append(text[start : token.start()] + "0")
            depth += 1
        elif mark in "]}":
            depth -= 1
            if depth == _PARSED_DEPTH_MAX:
                start = token.end()
    if depth > _PARSED_DEPTH_MAX:
        raise MalformedBeaconError("not JSON: nested without end")
    return "".join([*kept, text[start:]])


def _parse(body: bytes) -> tuple[Any, bool]:
    """The body's JSON, and whether it may hold lone surrogates. Raises MalformedBeaconError."""
    try:
        return from_json(body), False
    except ValueError as error:
        # The quick parser stops at what concerns one item only: depth, lone surrogates, endless integers.
        if not body.strip():
            raise MalformedBeaconError("not JSON: the body is empty") from None
        try:
            return json.loads(_cut_depth(body.decode()), parse_int=_whole), True
        except UnicodeDecodeError:
            raise MalformedBeaconError("not JSON: the body is not UTF-8") from None
        except (ValueError, RecursionError):
            raise MalformedBeaconError(f"not JSON: {error}") from None


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < 4000 else float("inf")  # Python refuses texts of more than 4,300 digits


_CHECKED = {float, dict, list}  # what the quick parser can bring that must be looked into


def _check_tree(value: Any, level: int) -> None:
    """Refuse what must not reach the store, wherever in the item it is: depth, non-finite numbers, lone surrogates."""
    if isinstance(value, str):
        if not _is_text(value):
            raise ItemError("a text holds a lone surrogate")
    elif isinstance(value, float):
        if not isfinite(value):
            raise ItemError("a number is not finite")
    elif isinstance(value, dict | list):
        if level > NESTING_MAX:
            raise ItemError(f"nested over {NESTING_MAX} levels")
        for child in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_tree(child, level + 1)


def _check_item(raw: Any, surrogates: bool, large: bool) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ItemError("must be an object")
    if surrogates:
        _check_tree(raw, 1)
    for child in raw.values():
        if child.__class__ in _CHECKED:
            _check_tree(child, 2)
    if large and len(json.dumps(raw, separators=(",", ":"), ensure_ascii=False).encode()) > ITEM_BYTES_MAX:
        raise ItemError(f"larger than {ITEM_BYTES_MAX} bytes")
    return raw


def _read_items(
    body: bytes,
    parsed: Any,
    surrogates: bool,
    read: Callable[[int, dict[str, Any], str | None], Item],
    funnel: str | None,
    quick: Callable[[int, Any, str | None], Item | None] | None = None,
) -> tuple[list[Item], list[Rejection]]:
    """`quick` reads what it can of items that need no look into them, and gives None of others."""
    raws = parsed if isinstance(parsed, list) else [parsed]
    if not raws:
        raise RejectedBeaconError("no item")
    if len(raws) > ITEMS_MAX:
        raise RejectedBeaconError(f"{len(raws)} items; at most {ITEMS_MAX} a beacon")
    large = len(body) > ITEM_BYTES_MAX
    if surrogates or large:
        quick = None
    items: list[Item] = []
    rejected: list[Rejection] = []
    for index, raw in enumerate(raws):
        try:
            item = quick(index, raw, funnel) if quick else None
            items.append(item or read(index, _check_item(raw, surrogates, large), funnel))
        except ItemError as error:
            rejected.append(Rejection(index, str(error), claim=_read_claim(raw, funnel)))
    return items, rejected


def parse_web_vitals(body: bytes, funnel_id: str | None) -> tuple[list[Item], list[Rejection]]:
    """Items and refusals of a body of `POST /api/track/web-vitals`; `funnel_id` is the header's.

    Raises MalformedBeaconError (not JSON, neither object nor array) and RejectedBeaconError (no item, too many).
    """
    parsed, surrogates = _parse(body)
    if not isinstance(parsed, dict | list):
        raise MalformedBeaconError("neither an object nor an array")
    return _read_items(body, parsed, surrogates, _read_vital, funnel_id, _read_plain_vital)


def parse_events(body: bytes, funnel_id: str | None) -> tuple[list[Item], list[Rejection]]:
    """Items and refusals of a body of `POST /api/track/events`; `funnel_id` is the header's. Raises as above."""
    parsed, surrogates = _parse(body)
    if not isinstance(parsed, dict | list):
        raise MalformedBeaconError("neither an object nor an array")
    if isinstance(parsed, dict) and "events" in parsed:
        if not isinstance(parsed["events"], list):
            raise RejectedBeaconError("events: must be an array")
        named = parsed.get("funnelId")
        if isinstance(named, str) and 0 < len(named) <= ID_MAX and _is_text(named):
            funnel_id = named
        parsed = parsed["events"]
    return _read_items(body, parsed, surrogates, _read_event, funnel_id)


def _read_claim(raw: Any, funnel_id: str | None) -> Claim | None:
    """Whose a refused item would have been; None where it names no session."""
    said = raw if isinstance(raw, dict) else {}
    context = said.get("context")
    of_event = context.get("session") if isinstance(context, dict) else None
    texts = [
        text if isinstance(text, str) and 0 < len(text) <= ID_MAX and _is_text(text) else None
        for text in (
            said.get("sessionId"),
            of_event.get("sessionId") if isinstance(of_event, dict) else None,
            said.get("funnelId"),
        )
    ]
    session_id = texts[0] or texts[1]
    if session_id is None:
        return None
    metric = str(said.get("metric") or said.get("name") or "").upper()
    fact_id = _first_id(*(said.get(name) for name in ("id", "id_metric", "eventId"))) or ""
    return Claim(
        texts[2] or funnel_id, session_id, metric if metric in METRICS else "", fact_id if _is_text(fact_id) else ""
    )


# --- items -----------------------------------------------------------------------------------------------------------

_Model = TypeVar("_Model", bound=BaseModel)
_MESSAGES = {
    "missing": "is required",
    "float_type": "must be a number",
    "int_type": "must be an integer",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "finite_number": "must be finite",
}


def _reason(detail: ErrorDetails) -> str:
    limits = detail.get("ctx", {})
    match detail["type"]:
        case "greater_than_equal":
            text = f"must be >= {limits['ge']:g}"
        case "less_than_equal":
            text = f"must be <= {limits['le']:.0f}"
        case "string_too_long":
            text = f"must be at most {limits['max_length']} characters"
        case "string_too_short":
            text = "is required"
        case "string_pattern_mismatch":
            text = "must be one of " + ", ".join(METRICS)
        case other:
            text = _MESSAGES.get(other, "is not valid")
    return f"{detail['loc'][0]}: {text}"


def _validate(model: type[_Model], raw: dict[str, Any]) -> _Model:
    """The model of an item; wrong optional fields are left out. Raises ItemError for a required one."""
    given = raw
    said = raw.values()
    if None in said or "" in said:
        given = {key: value for key, value in raw.items() if value is not None and value != ""}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            field = str(detail["loc"][0])
            wrong = detail["input"]
            if detail["type"] == "int_type" and isinstance(wrong, float) and wrong.is_integer():
                given = {**given, field: int(wrong)}  # 1920.0 is an integer in JSON
            elif model.model_fields[field].is_required():
                raise ItemError(_reason(detail)) from None
            else:
                given = {**given, field: None}
    return _validate(model, given)


def _part(model: type[_Model], raw: Any) -> _Model:
    return _validate(model, raw if isinstance(raw, dict) else {})


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _known(text: str | None) -> str | None:
    """A device text, cut; "Unknown" means missing."""
    return text[:DEVICE_TEXT_MAX] if text and text.lower() != "unknown" else None


_kept_device = lru_cache(maxsize=4096)(Device)  # of texts that are cut: it cannot grow large


def _device(*said: Any) -> Device:
    """The values of the fields of `_Device`, in that order."""
    return _kept_device(*map(_known, said[:5]), *said[5:])


_DEVICE_FIELDS = tuple(_Device.model_fields)
_device_values = attrgetter(*_DEVICE_FIELDS)
_NO_DEVICE = _device(*[None] * len(_DEVICE_FIELDS))


def path_of(url: str) -> str | None:
    """The path of an address, cut at 2,048 characters; None where it has none. `https://a.example` has the path `/`."""
    rest = url.split("#", 1)[0].split("?", 1)[0]
    if "://" in rest:
        rest = "/" + rest.split("://", 1)[1].partition("/")[2]
    return rest[:URL_MAX] if rest.startswith("/") else None


_kept_page = lru_cache(maxsize=4096)(Page)  # of texts that are cut: it cannot grow large


def make_page(url: str | None, path: str | None, title: str | None) -> Page | None:
    """The page that an item names, cut; the path is derived from the URL where missing. None where nothing is said."""
    url = url[:URL_MAX] if url else None
    path = path[:URL_MAX] if path else path_of(url) if url else None
    title = title[:TITLE_MAX] if title else None
    return _kept_page(url, path, title) if url or path or title else None


def read_timestamp(value: Any) -> int:
    """Epoch ms, from a number of ms or an ISO 8601 text (without a zone: UTC); fractions of a ms are cut.

    Raises ItemError.
    """
    if isinstance(value, str):
        try:
            return from_any_iso(value)  # a clock that is far off is wrong, no reason to refuse the item
        except ValueError:
            raise ItemError("timestamp: must be epoch milliseconds or ISO 8601") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ItemError("timestamp: must be epoch milliseconds or ISO 8601")
    if not abs(value) <= SAFE_INTEGER_MAX:
        raise ItemError("timestamp: must be within 2^53")
    return int(value)


_RATINGS: dict[str, Literal["good", "needs-improvement", "poor"]] = {
    "good": "good",
    "needs-improvement": "needs-improvement",
    "needs_improvement": "needs-improvement",
    "poor": "poor",
}


def _rating(rating: str | None) -> str | None:
    return None if rating is None else _RATINGS[rating.lower()]


def derived_id(*content: object) -> str:
    """An id for an item that came without one, from its own content: the same item, sent again, has the same."""
    return "c-" + blake2b(to_json(list(content)).encode(), digest_size=15).hexdigest()


def _consents(gdpr: Any) -> bool:
    return isinstance(gdpr, dict) and gdpr.get("consentGiven") is True


def _is_given(value: Any) -> bool:
    return value is not None and value != ""


def _first_id(*candidates: Any) -> str | None:
    return next((said for said in candidates if isinstance(said, str) and 0 < len(said) <= ID_MAX), None)


_PLAIN = frozenset(_Vital.model_fields)
_NUMBERS: set[Any] = {float, int}
_TEXTS = {str, type(None)}


def _read_plain_vital(index: int, raw: Any, funnel_id: str | None) -> VitalItem | None:
    """What `_read_vital` makes of an item such as the tracker sends; None of any other, which has to be looked into.

    4 us instead of 8. tests/ingest/test_wire.py compares the two.
    """
    if raw.__class__ is not dict or not raw.keys() <= _PLAIN:
        return None
    get = raw.get
    session_id, anonymous_id, vital_id, funnel = get("sessionId"), get("anonymousId"), get("id"), get("funnelId")
    metric, rating, seq, delta = get("metric"), get("rating"), get("seq", 0), get("delta")
    value: Any = get("value")
    timestamp, url, path, title = get("timestamp"), get("pageUrl"), get("pagePath"), get("pageTitle")
    navigation_type, width, height = get("navigationType"), get("screenWidth"), get("screenHeight")
    texts = (get("deviceType"), get("browserName"), get("browserVersion"), get("osName"), get("osVersion"))
    if (
        (session_id.__class__ is str and 0 < len(session_id) <= ID_MAX)
        and (vital_id.__class__ is str and 0 < len(vital_id) <= ID_MAX)
        and (anonymous_id is None or (anonymous_id.__class__ is str and 0 < len(anonymous_id) <= ID_MAX))
        and (funnel is None or (funnel.__class__ is str and 0 < len(funnel) <= ID_MAX))
        and (metric.__class__ is str and metric in METRICS)
        and (value.__class__ in _NUMBERS and 0 <= value <= VALUE_MAX)
        and (delta is None or (delta.__class__ in _NUMBERS and -SAFE_INTEGER_MAX <= delta <= SAFE_INTEGER_MAX))
        and (rating is None or (rating.__class__ is str and rating in RATINGS))
        and (seq.__class__ is int and 0 <= seq <= SAFE_INTEGER_MAX)
        and (timestamp.__class__ is int and -SAFE_INTEGER_MAX <= timestamp <= SAFE_INTEGER_MAX)
        and (url.__class__ is str and url)
        and (path is None or path.__class__ is str)
        and (title is None or title.__class__ is str)
        and (navigation_type is None or navigation_type.__class__ is str)
        and (width is None or (width.__class__ is int and -SAFE_INTEGER_MAX <= width <= SAFE_INTEGER_MAX))
        and (height is None or (height.__class__ is int and -SAFE_INTEGER_MAX <= height <= SAFE_INTEGER_MAX))
        and _TEXTS.issuperset(map(type, texts))
    ):
        return VitalItem(
            index,
            session_id,
            anonymous_id,
            funnel or funnel_id,
            metric,
            value + 0.0,  # -0.0 is 0
            vital_id,
            timestamp,
            make_page(url, path, title),
            seq,
            rating,
            None if delta is None else delta + 0.0,
            navigation_type if navigation_type in NAVIGATION_TYPES else None,
            _device(*texts, width, height),
            None,
            None,
            False,
        )
    return None


def _read_vital(index: int, raw: dict[str, Any], funnel_id: str | None) -> VitalItem:
    for name, alias in (("metric", "name"), ("pageUrl", "navigationURL")):
        if alias in raw and not _is_given(raw.get(name)):
            raw[name] = raw[alias]
    if "id_metric" in raw:
        raw["id"] = _first_id(raw.get("id"), raw["id_metric"])
    from_library = (
        _is_given(raw.get("name"))
        and _is_given(raw.get("id"))
        and not any(_is_given(raw.get(field)) for field in ("sessionId", "anonymousId", "timestamp"))
    )
    if from_library:
        raw["sessionId"] = "-"
        raw["timestamp"] = 0
        if not _is_given(raw.get("pageUrl")):
            raw["pageUrl"] = "-"
    vital = _validate(_Vital, _without_unsafe_delta(raw))
    item = _vital_item(index, vital, funnel_id, raw.get("gdpr"))
    if not from_library:
        return item
    page = item.page if vital.pageUrl != "-" else make_page(None, vital.pagePath, vital.pageTitle)
    return item._replace(session_id=None, timestamp=None, page=page)


def _without_unsafe_delta(raw: dict[str, Any]) -> dict[str, Any]:
    """An integer beyond 2^53 would pass as the float next to it."""
    delta = raw.get("delta")
    return {**raw, "delta": None} if type(delta) is int and abs(delta) > SAFE_INTEGER_MAX else raw


def _vital_item(index: int, vital: _Vital, funnel_id: str | None, gdpr: Any) -> VitalItem:
    timestamp = read_timestamp(vital.timestamp)
    navigation_type = vital.navigationType if vital.navigationType in NAVIGATION_TYPES else None
    page = make_page(vital.pageUrl, vital.pagePath, vital.pageTitle)
    metric = vital.metric.upper()
    value = vital.value + 0.0  # -0.0 is 0
    rating = _rating(vital.rating)
    delta = None if vital.delta is None else vital.delta + 0.0
    return VitalItem(
        index,
        vital.sessionId,
        vital.anonymousId,
        vital.funnelId or funnel_id,
        metric,
        value,
        vital.id or derived_id(metric, value, timestamp, page, vital.seq, rating, delta, navigation_type),
        timestamp,
        page,
        vital.seq,
        rating,
        delta,
        navigation_type,
        _device(*_device_values(vital)),
        None,
        None,
        _consents(gdpr),
    )


def _read_event(index: int, raw: dict[str, Any], funnel_id: str | None) -> Item:
    event = _validate(_Event, raw)
    try:
        session_id = _part(_Session, event.context.get("session")).sessionId
    except ItemError as error:
        raise ItemError(f"context.session.{error}") from None
    timestamp = read_timestamp(event.timestamp)
    device = _part(_EventDevice, event.context.get("device"))
    page = _part(_EventPage, event.context.get("page"))
    anonymous_id = _part(_User, event.context.get("user")).anonymousId
    consent = _consents(event.context.get("gdpr"))
    if event.eventName == "web_vital":
        vital = dict(event.properties or {})
        vital |= {"sessionId": session_id, "timestamp": timestamp, "funnelId": event.funnelId}
        vital["anonymousId"] = anonymous_id or vital.get("anonymousId")
        vital["id"] = _first_id(vital.get("id"), vital.get("id_metric"), event.eventId)
        for field, value in (
            ("metric", vital.get("name")),
            ("pageUrl", vital.get("navigationURL") or page.url),
            ("pagePath", page.path),
            ("pageTitle", page.title),
        ):
            if not _is_given(vital.get(field)):
                vital[field] = value
        item = _vital_item(index, _validate(_Vital, _without_unsafe_delta(vital)), funnel_id, None)
        said = _device(*_device_values(device))
        return item._replace(
            device=item.device if item.device != _NO_DEVICE else said,
            user_agent=device.userAgent,
            address=device.ipAddress,
            consent=consent,
        )
    kept = {key: value for key, value in event.context.items() if key not in ("session", "page", "device")}
    properties = None if event.properties is None else to_json(event.properties)
    context = to_json(kept) if kept else None
    where = make_page(page.url, page.path, page.title)
    referrer = page.referrer[:URL_MAX] if page.referrer else None
    return EventItem(
        index,
        session_id,
        anonymous_id,
        event.funnelId or funnel_id,
        event.eventId or derived_id(event.eventName, properties, timestamp, where, referrer, context),
        event.eventName,
        properties,
        timestamp,
        where,
        referrer,
        context,
        event.context.get("utm"),
        event.context.get("clickIds"),
        _device(*_device_values(device)),
        device.userAgent,
        device.ipAddress,
        consent,
    )
