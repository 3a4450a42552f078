"""Packed columns as arrays, and the filters of a scope over them.

Every array of one table has an entry a row. Keys are those of the file; 0 stands for none. A column of places points
into a list: each chunk has its own, `join_places` makes one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sidecar.store.database import Connection
from sidecar.store.samples import Layout, Listed
from sidecar.store.scope import FUNNELS_OF, PAGES_OF, UNKNOWN, Scope

if TYPE_CHECKING:
    import numpy as np  # 25 MiB of memory: imported when the first figure is asked for
    from numpy.typing import NDArray

Columns = dict[str, "NDArray[Any]"]


def join(layout: Layout, tables: Sequence[list[bytes]]) -> Columns:
    """The columns of several tables of one layout, one after the other. Takes them out of the tables: 2,000,000 web
    vitals are 56 MB, and would be there twice.
    """
    import numpy as np

    columns = {}
    for place, (name, code) in enumerate(layout):
        columns[name] = np.frombuffer(b"".join([table[place] for table in tables]), np.dtype(code))
        for table in tables:
            table[place] = b""
    return columns


def shift(places: NDArray[Any], counts: Sequence[int], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Places in what has `lengths` in each chunk as places in all of it; `counts` of them are of each chunk."""
    import numpy as np

    begins = np.cumsum([0, *lengths], dtype=np.int64)[:-1]
    shifted: NDArray[np.int64] = places + np.repeat(begins, counts)
    return shifted


def join_places(places: NDArray[Any], counts: Sequence[int], lists: Sequence[Listed]) -> tuple[NDArray[Any], Listed]:
    """A column of places in the lists of the chunks as one of places in a list of the different things."""
    import numpy as np

    numbers: dict[Any, int] = {}
    table = [
        numbers.setdefault(tuple(thing) if isinstance(thing, list) else thing, len(numbers))
        for listed in lists
        for thing in listed
    ]
    joined = np.array(table or [0], np.int64)[shift(places, counts, [len(listed) for listed in lists])]
    return joined, list(numbers)


def choose(columns: Columns, kept: NDArray[np.bool_]) -> Columns:
    """The rows of a mask."""
    import numpy as np

    if kept.all():
        return columns
    rows = np.flatnonzero(kept)  # looked for once: a mask is read anew for each column
    return {name: column[rows] for name, column in columns.items()}


def list_used(keys: NDArray[Any]) -> list[int]:
    """Each key that a column holds, but for 0."""
    import numpy as np

    used = np.flatnonzero(np.bincount(keys, minlength=1))
    return used[used > 0].tolist() if len(keys) else []


def is_among(conn: Connection, scope: Scope, column: NDArray[Any], sql: str) -> NDArray[np.bool_]:
    """Which keys of a column a statement gives; 0 is none of them."""
    import numpy as np

    keys = np.fromiter((key for (key,) in conn.execute(sql, scope._asdict())), np.int64)
    table = np.zeros(int(column.max(initial=0)) + 1, np.bool_)
    table[keys[keys < len(table)]] = True
    among: NDArray[np.bool_] = table[column]
    return among


def is_on_page(conn: Connection, scope: Scope, page_keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Which page keys are of the scope's page."""
    return is_among(conn, scope, page_keys, PAGES_OF)


def fits(conn: Connection, scope: Scope, columns: Columns, clients: Listed, times: str) -> NDArray[np.bool_]:
    """Which rows are of the scope, but for its page. `times` names the column that has to be in its period; `clients`
    is what the column `client` points into: (device type, country code, ...).
    """
    import numpy as np

    kept: NDArray[np.bool_] = (columns[times] >= scope.since) & (columns[times] < scope.until)
    if scope.site is not None or scope.funnel_id is not None:
        kept &= is_among(conn, scope, columns["funnel_key"], FUNNELS_OF)
    if scope.device is not None or scope.country is not None:
        fitting = [_is(scope.device, device) and _is(scope.country, country) for device, country, *_ in clients]
        kept &= np.array(fitting or [False], np.bool_)[columns["client"]]
    return kept


def _is(asked: str | None, said: str | None) -> bool:
    return asked is None or said == (None if asked == UNKNOWN else asked)
