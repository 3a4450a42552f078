"""What the filters of the dashboard offer: the sites, funnels and countries that are known."""

from __future__ import annotations

from typing import NamedTuple

from sidecar.store.database import Connection
from sidecar.store.queries import list_funnels

CHOICES_MAX = 100  # offered by name; where there are more, the name is typed


class Choices(NamedTuple):
    """What there is to choose from; None where there is too much to list. `countries` are names by code."""

    sites: list[str] | None
    funnels: list[str] | None
    countries: dict[str, str]


def list_choices(conn: Connection) -> Choices:
    """The choices of the whole file, whatever the period: a filter that matches nothing can still be changed."""
    funnels = list_funnels(conn, most=CHOICES_MAX + 1)
    if len(funnels) > CHOICES_MAX:
        return Choices(None, None, list_countries(conn))
    return Choices(
        sorted({site for site, _ in funnels}), sorted({funnel_id for _, funnel_id in funnels}), list_countries(conn)
    )


def list_countries(conn: Connection) -> dict[str, str]:
    """Names of countries by their code, in the order of the names."""
    found = conn.execute(
        """SELECT country_code, max(coalesce(country_name, country_code)) AS name FROM clients
        WHERE country_code IS NOT NULL GROUP BY country_code ORDER BY name, country_code"""
    )
    return dict(found.fetchall())
