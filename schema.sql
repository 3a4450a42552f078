-- Vitals Sidecar: what its one SQLite file holds, and what each part means.
--
-- Facts are upserted; sessions and visitors are derived. `web_vitals` and `events` hold facts. Every column of `sessions`
-- and `visitors` below the line "derived" is a pure function of the facts, written from the views `derived_sessions` and
-- `derived_visitors` in the transaction that changed the facts, and compared with them by `sidecar verify`.
--
-- Times are integer milliseconds since the epoch (UTC). Texts that repeat (page addresses, clients, campaigns, visitor
-- ids) are held once and pointed at by integer keys. Keys are of this file only: identity is always in texts.
-- To read sessions by hand, use the view `session_list`.

-- One row a funnel: a named stream of sessions within a site.
CREATE TABLE funnels (
    funnel_key          INTEGER PRIMARY KEY,
    site                TEXT NOT NULL,
    funnel_id           TEXT NOT NULL,
    subaccount_id       TEXT,
    subaccount_revision INTEGER NOT NULL DEFAULT -1,  -- revision of the document that named it; 2^53 from the settings
    UNIQUE (site, funnel_id)
) STRICT;

-- Every visitor id that a fact names. `visitors` holds the ones that have a session.
CREATE TABLE anonymous_ids (
    visitor_key  INTEGER PRIMARY KEY,
    site         TEXT NOT NULL,
    anonymous_id TEXT NOT NULL,
    UNIQUE (site, anonymous_id)
) STRICT;

-- A person's browser, as far as it named itself. Derived from its sessions and their identifications.
CREATE TABLE visitors (
    visitor_key    INTEGER PRIMARY KEY REFERENCES anonymous_ids (visitor_key),
    -- derived
    site           TEXT NOT NULL,
    anonymous_id   TEXT NOT NULL,
    display_name   TEXT NOT NULL,
    first_seen     INTEGER NOT NULL,
    last_seen      INTEGER NOT NULL,
    total_sessions INTEGER NOT NULL,
    total_events   INTEGER NOT NULL,
    user_id        TEXT,
    traits         TEXT  -- JSON object
) STRICT;
CREATE INDEX visitors_by_last_seen ON visitors (last_seen);

-- A page as a fact named it. `digest` is BLAKE2b-128 of the three texts: an index over it is shorter than one over URLs.
-- The low bit of the key says whether the URL is known, so that "the first fact with a page" needs no join.
CREATE TABLE pages (
    page_key INTEGER PRIMARY KEY,
    digest   BLOB NOT NULL UNIQUE,
    url      TEXT,
    path     TEXT,
    title    TEXT
) STRICT;

-- What sent a fact: device, place and address together. The low three bits of the key say what is known of it
-- (1 device, 2 place, 4 address), so that "the first fact with a device" needs no join: a third of the time to derive.
CREATE TABLE clients (
    client_key      INTEGER PRIMARY KEY,
    digest          BLOB NOT NULL UNIQUE,
    device_type     TEXT,
    browser_name    TEXT,
    browser_version TEXT,
    os_name         TEXT,
    os_version      TEXT,
    screen_width    INTEGER,
    screen_height   INTEGER,
    bot             TEXT,
    country_code    TEXT,
    country_name    TEXT,
    region          TEXT,
    city            TEXT,
    ip_address      TEXT
) STRICT;

-- UTM parameters as a set: an event's own, else those of its page address.
CREATE TABLE campaigns (
    campaign_key INTEGER PRIMARY KEY,
    digest       BLOB NOT NULL UNIQUE,
    source       TEXT,
    medium       TEXT,
    campaign     TEXT,
    term         TEXT,
    content      TEXT
) STRICT;

-- One visit. A row appears with its first fact, whichever kind that is.
CREATE TABLE sessions (
    session_key         INTEGER PRIMARY KEY,
    funnel_key          INTEGER NOT NULL REFERENCES funnels (funnel_key),
    session_id          TEXT NOT NULL,
    revision            INTEGER NOT NULL DEFAULT 0,  -- grows with each change of the session's facts; a time in ms
    shipped_revision    INTEGER NOT NULL DEFAULT -1, -- up to which the destination has confirmed or refused it; -1: none
    shipped_at          INTEGER,                     -- the last confirmation; a refused revision is in `parked`
    -- derived; only the two links of the model are declared as foreign keys: the others cost 2 us a beacon and `verify` holds them
    visitor_key         INTEGER REFERENCES visitors (visitor_key) DEFERRABLE INITIALLY DEFERRED,
    started_at          INTEGER,
    ended_at            INTEGER,
    page_views          INTEGER NOT NULL DEFAULT 0,
    events_count        INTEGER NOT NULL DEFAULT 0,
    vitals_count        INTEGER NOT NULL DEFAULT 0,
    identifications     INTEGER NOT NULL DEFAULT 0,
    converted           INTEGER NOT NULL DEFAULT 0,
    conversion_type     TEXT,
    conversion_value    REAL,
    currency            TEXT,
    first_page_key      INTEGER,
    last_page_key       INTEGER,
    first_referrer      TEXT,
    first_campaign_key  INTEGER,
    last_campaign_key   INTEGER,
    first_click_ids     TEXT,  -- JSON object
    last_click_ids      TEXT,  -- JSON object
    first_client_key    INTEGER,
    other_clients       TEXT,  -- keys of the first clients with device, place, address (JSON), where first_client_key won't do
    avg_lcp             REAL,
    avg_inp             REAL,
    avg_cls             REAL,
    avg_fcp             REAL,
    avg_ttfb            REAL,
    active_seconds      REAL,
    device_client_key   INTEGER GENERATED ALWAYS AS (iif(other_clients IS NULL, first_client_key, other_clients ->> 0)) VIRTUAL,
    place_client_key    INTEGER GENERATED ALWAYS AS (iif(other_clients IS NULL, first_client_key, other_clients ->> 1)) VIRTUAL,
    address_client_key  INTEGER GENERATED ALWAYS AS (iif(other_clients IS NULL, first_client_key, other_clients ->> 2)) VIRTUAL,
    duration_seconds    INTEGER GENERATED ALWAYS AS ((ended_at - started_at) / 1000) VIRTUAL,
    provisional         INTEGER GENERATED ALWAYS AS (events_count = 0) VIRTUAL,
    experience_score    INTEGER GENERATED ALWAYS AS (
        CASE WHEN coalesce(avg_lcp, avg_inp, avg_cls, avg_fcp, avg_ttfb) IS NOT NULL THEN max(0, 100
            - CASE WHEN avg_lcp > 4000 THEN 30 WHEN avg_lcp > 2500 THEN 15 ELSE 0 END
            - CASE WHEN avg_inp > 500 THEN 25 WHEN avg_inp > 200 THEN 12 ELSE 0 END
            - CASE WHEN avg_cls > 0.25 THEN 20 WHEN avg_cls > 0.1 THEN 10 ELSE 0 END
            - CASE WHEN avg_fcp > 3000 THEN 15 WHEN avg_fcp > 1800 THEN 7 ELSE 0 END
            - CASE WHEN avg_ttfb > 1800 THEN 10 WHEN avg_ttfb > 800 THEN 5 ELSE 0 END) END) VIRTUAL,
    UNIQUE (funnel_key, session_id)
) STRICT;
CREATE INDEX sessions_by_start ON sessions (started_at);
CREATE INDEX sessions_by_visitor ON sessions (visitor_key, started_at);
CREATE INDEX sessions_identified ON sessions (visitor_key) WHERE identifications > 0;
CREATE INDEX sessions_to_ship ON sessions (revision) WHERE revision > shipped_revision;

-- A fact: the newest report of one metric instance. TTFB of `back-forward-cache` and `soft-navigation` is a placeholder.
CREATE TABLE web_vitals (
    session_key     INTEGER NOT NULL REFERENCES sessions (session_key),
    metric          TEXT NOT NULL CHECK (metric IN ('LCP', 'INP', 'CLS', 'FCP', 'TTFB', 'FID')),
    id              TEXT NOT NULL,
    value           REAL NOT NULL,  -- milliseconds; CLS has no unit
    rating_code     INTEGER NOT NULL CHECK (rating_code BETWEEN 0 AND 2),
    delta           REAL,
    navigation_code INTEGER CHECK (navigation_code BETWEEN 0 AND 6),
    seq             INTEGER NOT NULL,
    page_key        INTEGER REFERENCES pages (page_key),
    visitor_key     INTEGER REFERENCES anonymous_ids (visitor_key),
    client_key      INTEGER REFERENCES clients (client_key),
    timestamp       INTEGER NOT NULL,
    clock_skewed    INTEGER NOT NULL CHECK (clock_skewed IN (0, 1)),
    content_bytes   INTEGER NOT NULL,  -- length of the fact's canonical JSON
    -- codes 0 and 1 take no room in a row: 15 bytes a vital less than the texts
    rating          TEXT GENERATED ALWAYS AS (
        CASE rating_code WHEN 0 THEN 'good' WHEN 1 THEN 'needs-improvement' ELSE 'poor' END) VIRTUAL,
    navigation_type TEXT GENERATED ALWAYS AS (
        CASE navigation_code WHEN 0 THEN 'navigate' WHEN 1 THEN 'reload' WHEN 2 THEN 'back-forward'
        WHEN 3 THEN 'back-forward-cache' WHEN 4 THEN 'prerender' WHEN 5 THEN 'restore'
        WHEN 6 THEN 'soft-navigation' END) VIRTUAL,
    PRIMARY KEY (session_key, metric, id)
) STRICT, WITHOUT ROWID;

-- A fact: the newest report of one event.
CREATE TABLE events (
    session_key   INTEGER NOT NULL REFERENCES sessions (session_key),
    event_id      TEXT NOT NULL,
    event_name    TEXT NOT NULL,
    properties    TEXT,  -- JSON object
    page_key      INTEGER REFERENCES pages (page_key),
    referrer      TEXT,
    context       TEXT,  -- JSON object: what the client sent beside session, page and device
    campaign_key  INTEGER REFERENCES campaigns (campaign_key),
    click_ids     TEXT,  -- JSON object
    visitor_key   INTEGER REFERENCES anonymous_ids (visitor_key),
    client_key    INTEGER REFERENCES clients (client_key),
    timestamp     INTEGER NOT NULL,
    clock_skewed  INTEGER NOT NULL CHECK (clock_skewed IN (0, 1)),
    content_bytes INTEGER NOT NULL,
    PRIMARY KEY (session_key, event_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_identifying ON events (session_key) WHERE event_name = 'user_identified';
-- No beacon makes a fact this large, a document may: of such a session the bytes are counted before it has many facts.
CREATE INDEX events_large ON events (session_key) WHERE content_bytes > 65536;

-- What a session is. Facts are ordered by (timestamp, events before vitals, metric, id); `instr` gives the metric's place,
-- events have place 0. Driven by `sessions` with correlated subqueries on the base tables: a grouped view reads every fact.
CREATE VIEW derived_sessions AS
SELECT
    s.session_key,
    (SELECT CASE WHEN min(low) IS max(high) THEN min(low) ELSE
        (SELECT k FROM (SELECT visitor_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events WHERE session_key = s.session_key AND visitor_key IS NOT NULL
                            UNION ALL
                            SELECT visitor_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals WHERE session_key = s.session_key AND visitor_key IS NOT NULL)
             ORDER BY t, place, id LIMIT 1) END
     FROM (SELECT min(visitor_key) AS low, max(visitor_key) AS high FROM events WHERE session_key = s.session_key
           UNION ALL
           SELECT min(visitor_key), max(visitor_key) FROM web_vitals WHERE session_key = s.session_key)) AS visitor_key,
    (SELECT min(t) FROM (SELECT min(timestamp) AS t FROM events WHERE session_key = s.session_key
                         UNION ALL
                         SELECT min(timestamp) FROM web_vitals WHERE session_key = s.session_key)) AS started_at,
    (SELECT max(t) FROM (SELECT max(timestamp) AS t FROM events WHERE session_key = s.session_key
                         UNION ALL
                         SELECT max(timestamp) FROM web_vitals WHERE session_key = s.session_key)) AS ended_at,
    (SELECT count(*) FROM events WHERE session_key = s.session_key AND event_name = 'page_view') AS page_views,
    (SELECT count(*) FROM events WHERE session_key = s.session_key) AS events_count,
    (SELECT count(*) FROM web_vitals WHERE session_key = s.session_key) AS vitals_count,
    (SELECT count(*) FROM events WHERE session_key = s.session_key AND event_name = 'user_identified') AS identifications,
    (SELECT EXISTS (SELECT 1 FROM events WHERE session_key = s.session_key AND
                    event_name IN ('conversion', 'purchase', 'checkout_completed'))) AS converted,
    (SELECT CASE json_type(properties, '$.conversionType') WHEN 'text' THEN nullif(json_extract(properties, '$.conversionType'), '') END
     FROM events WHERE session_key = s.session_key AND event_name IN ('conversion', 'purchase', 'checkout_completed')
     ORDER BY timestamp, event_id LIMIT 1) AS conversion_type,
    (SELECT CASE WHEN abs(x) < 4e9 THEN round(x * 1e6) / 1e6 ELSE round(x, 6) END + 0.0
     FROM (SELECT sum(json_extract(properties, '$.revenue')) + 0.0 AS x FROM events WHERE session_key = s.session_key
           AND event_name IN ('conversion', 'purchase', 'checkout_completed') AND json_type(properties, '$.revenue') IN ('integer', 'real')
           AND json_extract(properties, '$.revenue') BETWEEN -1e12 AND 1e12)) AS conversion_value,
    (SELECT CASE json_type(properties, '$.currency') WHEN 'text' THEN nullif(json_extract(properties, '$.currency'), '') END
     FROM events WHERE session_key = s.session_key AND event_name IN ('conversion', 'purchase', 'checkout_completed')
     ORDER BY timestamp, event_id LIMIT 1) AS currency,
    (SELECT k FROM (SELECT page_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events WHERE session_key = s.session_key AND page_key & 1
                    UNION ALL
                    SELECT page_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals WHERE session_key = s.session_key AND page_key & 1)
     ORDER BY t, place, id LIMIT 1) AS first_page_key,
    (SELECT k FROM (SELECT page_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events WHERE session_key = s.session_key AND page_key & 1
                    UNION ALL
                    SELECT page_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals WHERE session_key = s.session_key AND page_key & 1)
     ORDER BY t DESC, place DESC, id DESC LIMIT 1) AS last_page_key,
    (SELECT referrer FROM events WHERE session_key = s.session_key AND referrer IS NOT NULL
     ORDER BY timestamp, event_id LIMIT 1) AS first_referrer,
    (SELECT campaign_key FROM events WHERE session_key = s.session_key AND campaign_key IS NOT NULL
     ORDER BY timestamp, event_id LIMIT 1) AS first_campaign_key,
    (SELECT campaign_key FROM events WHERE session_key = s.session_key AND campaign_key IS NOT NULL
     ORDER BY timestamp DESC, event_id DESC LIMIT 1) AS last_campaign_key,
    (SELECT click_ids FROM events WHERE session_key = s.session_key AND click_ids IS NOT NULL
     ORDER BY timestamp, event_id LIMIT 1) AS first_click_ids,
    (SELECT click_ids FROM events WHERE session_key = s.session_key AND click_ids IS NOT NULL
     ORDER BY timestamp DESC, event_id DESC LIMIT 1) AS last_click_ids,
    (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events WHERE session_key = s.session_key AND client_key IS NOT NULL
                    UNION ALL
                    SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals WHERE session_key = s.session_key AND client_key IS NOT NULL)
     ORDER BY t, place, id LIMIT 1) AS first_client_key,
    (SELECT CASE WHEN min(low) IS NOT max(high) THEN json_array(
        (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events WHERE session_key = s.session_key AND client_key & 1
                            UNION ALL
                            SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals WHERE session_key = s.session_key AND client_key & 1)
             ORDER BY t, place, id LIMIT 1),
        (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events WHERE session_key = s.session_key AND client_key & 2
                            UNION ALL
                            SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals WHERE session_key = s.session_key AND client_key & 2)
             ORDER BY t, place, id LIMIT 1),
        (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events WHERE session_key = s.session_key AND client_key & 4
                            UNION ALL
                            SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals WHERE session_key = s.session_key AND client_key & 4)
             ORDER BY t, place, id LIMIT 1)) END
     FROM (SELECT min(client_key & 7) AS low, max(client_key & 7) AS high FROM events WHERE session_key = s.session_key
           UNION ALL
           SELECT min(client_key & 7), max(client_key & 7) FROM web_vitals WHERE session_key = s.session_key)) AS other_clients,
    (SELECT round(avg(value) * 1e6) / 1e6 FROM web_vitals WHERE session_key = s.session_key AND metric = 'LCP') AS avg_lcp,
    (SELECT round(avg(value) * 1e6) / 1e6 FROM web_vitals WHERE session_key = s.session_key AND metric = 'INP') AS avg_inp,
    (SELECT round(avg(value) * 1e6) / 1e6 FROM web_vitals WHERE session_key = s.session_key AND metric = 'CLS') AS avg_cls,
    (SELECT round(avg(value) * 1e6) / 1e6 FROM web_vitals WHERE session_key = s.session_key AND metric = 'FCP') AS avg_fcp,
    (SELECT round(avg(value) * 1e6) / 1e6 FROM web_vitals WHERE session_key = s.session_key AND metric = 'TTFB'
     AND coalesce(navigation_code, 0) NOT IN (3, 6)) AS avg_ttfb,
    (SELECT CASE WHEN abs(x) < 4e9 THEN round(x * 1e6) / 1e6 ELSE round(x, 6) END + 0.0
     FROM (SELECT sum(json_extract(properties, '$.activeTime')) + 0.0 AS x FROM events WHERE session_key = s.session_key
           AND event_name = 'session_end' AND json_type(properties, '$.activeTime') IN ('integer', 'real')
           AND json_extract(properties, '$.activeTime') BETWEEN -1e12 AND 1e12)) AS active_seconds
FROM sessions AS s;

-- The events that name a person, with the visitor of their session.
CREATE VIEW identifications AS
SELECT
    s.visitor_key, e.timestamp, f.funnel_id, s.session_id, e.event_id, e.properties,
    CASE json_type(e.properties, '$.userId')
        WHEN 'text' THEN nullif(json_extract(e.properties, '$.userId'), '') END AS user_id
FROM sessions AS s
JOIN events AS e ON e.session_key = s.session_key AND e.event_name = 'user_identified'
JOIN funnels AS f ON f.funnel_key = s.funnel_key
WHERE s.identifications > 0;

-- What a visitor is: over the sessions whose first naming fact names it. Identifications are ordered by
-- (timestamp, funnel, session, event); traits are of the latest one that has any, the user id of the latest one.
CREATE VIEW derived_visitors AS
SELECT
    a.visitor_key, a.site, a.anonymous_id,
    coalesce(
        (SELECT coalesce(CASE json_type(e.properties, '$.traits.name') WHEN 'text'
                         THEN nullif(json_extract(e.properties, '$.traits.name'), '') END,
                         CASE json_type(e.properties, '$.traits.email') WHEN 'text'
                         THEN nullif(json_extract(e.properties, '$.traits.email'), '') END)
         FROM identifications AS e
         WHERE e.visitor_key = a.visitor_key AND json_type(e.properties, '$.traits') = 'object'
         AND json_extract(e.properties, '$.traits') <> '{}'
         ORDER BY e.timestamp DESC, e.funnel_id DESC, e.session_id DESC, e.event_id DESC LIMIT 1),
        (SELECT e.user_id FROM identifications AS e WHERE e.visitor_key = a.visitor_key
         ORDER BY e.timestamp DESC, e.funnel_id DESC, e.session_id DESC, e.event_id DESC LIMIT 1),
        'Visitor #' || substr(a.anonymous_id, -6)) AS display_name,
    (SELECT min(started_at) FROM sessions WHERE visitor_key = a.visitor_key) AS first_seen,
    (SELECT max(ended_at) FROM sessions WHERE visitor_key = a.visitor_key) AS last_seen,
    (SELECT count(*) FROM sessions WHERE visitor_key = a.visitor_key) AS total_sessions,
    (SELECT sum(events_count) FROM sessions WHERE visitor_key = a.visitor_key) AS total_events,
    (SELECT e.user_id FROM identifications AS e WHERE e.visitor_key = a.visitor_key
     ORDER BY e.timestamp DESC, e.funnel_id DESC, e.session_id DESC, e.event_id DESC LIMIT 1) AS user_id,
    (SELECT json_extract(e.properties, '$.traits') FROM identifications AS e
     WHERE e.visitor_key = a.visitor_key AND json_type(e.properties, '$.traits') = 'object'
     AND json_extract(e.properties, '$.traits') <> '{}'
     ORDER BY e.timestamp DESC, e.funnel_id DESC, e.session_id DESC, e.event_id DESC LIMIT 1) AS traits
FROM anonymous_ids AS a
WHERE EXISTS (SELECT 1 FROM sessions WHERE visitor_key = a.visitor_key);

-- How the writer derives: one INSERT rebuilds the rows of the sessions whose facts a transaction changed, then those of
-- their visitors. The parameters are JSON arrays of keys: `sessions` are all of them, `with_events` those whose events
-- changed (a vital cannot change what comes from events alone), `moved` those whose visitor or start may be another one
-- (both are indexed: an entry put back as it was costs two pages of the WAL), `visitors` the visitors that may have lost
-- a session. `now` (ms) gives the sessions their next revision, NULL leaves revisions as they are.
-- This is the view above in another spelling, one pass over the facts where it needs thirteen, which halves the cost of
-- a vital. The view is what holds: `verify` compares, and the tests do after every step.
-- The first and last page are looked for at the time that the pass found: of a session of 5,000 facts a third less.
-- A trigger and not six statements, since each one that Python runs gives up the GIL and waits to get it back.
CREATE VIEW derivations AS
SELECT NULL AS sessions, NULL AS with_events, NULL AS moved, NULL AS visitors, NULL AS now WHERE false;
CREATE TRIGGER derive INSTEAD OF INSERT ON derivations
BEGIN
    UPDATE sessions SET
        revision = iif(NEW.now IS NULL, revision, min(max(revision + 1, NEW.now), 9007199254740991)),
        (vitals_count, avg_lcp, avg_inp, avg_cls, avg_fcp, avg_ttfb,
         ended_at, first_page_key, last_page_key, first_client_key, other_clients)
        = (SELECT
           vitals, lcp, inp, cls, fcp, ttfb, latest,
           CASE WHEN low_page IS high_page THEN low_page ELSE
           (SELECT k FROM (SELECT page_key AS k, 0 AS place, event_id AS id FROM events
                           WHERE session_key = sessions.session_key AND page_key & 1 AND timestamp = first_page_at
                           UNION ALL
                           SELECT page_key, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals
                           WHERE session_key = sessions.session_key AND page_key & 1 AND timestamp = first_page_at)
            ORDER BY place, id LIMIT 1) END,
           CASE WHEN low_page IS high_page THEN low_page ELSE
           (SELECT k FROM (SELECT page_key AS k, 0 AS place, event_id AS id FROM events
                           WHERE session_key = sessions.session_key AND page_key & 1 AND timestamp = last_page_at
                           UNION ALL
                           SELECT page_key, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals
                           WHERE session_key = sessions.session_key AND page_key & 1 AND timestamp = last_page_at)
            ORDER BY place DESC, id DESC LIMIT 1) END,
           CASE WHEN low_client IS high_client THEN low_client ELSE
           (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events
                           WHERE session_key = sessions.session_key AND client_key IS NOT NULL
                           UNION ALL
                           SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals
                           WHERE session_key = sessions.session_key AND client_key IS NOT NULL)
            ORDER BY t, place, id LIMIT 1) END,
           CASE WHEN low_known IS NOT high_known THEN json_array(
           (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events
                           WHERE session_key = sessions.session_key AND client_key & 1
                           UNION ALL
                           SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals
                           WHERE session_key = sessions.session_key AND client_key & 1)
            ORDER BY t, place, id LIMIT 1),
           (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events
                           WHERE session_key = sessions.session_key AND client_key & 2
                           UNION ALL
                           SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals
                           WHERE session_key = sessions.session_key AND client_key & 2)
            ORDER BY t, place, id LIMIT 1),
           (SELECT k FROM (SELECT client_key AS k, timestamp AS t, 0 AS place, event_id AS id FROM events
                           WHERE session_key = sessions.session_key AND client_key & 4
                           UNION ALL
                           SELECT client_key, timestamp, instr('LCP INP CLS FCP TTFB FID', metric), id FROM web_vitals
                           WHERE session_key = sessions.session_key AND client_key & 4)
            ORDER BY t, place, id LIMIT 1)) END
           FROM (SELECT
                    count(metric) AS vitals,
                    round(avg(CASE WHEN metric = 'LCP' THEN value END) * 1e6) / 1e6 AS lcp,
                    round(avg(CASE WHEN metric = 'INP' THEN value END) * 1e6) / 1e6 AS inp,
                    round(avg(CASE WHEN metric = 'CLS' THEN value END) * 1e6) / 1e6 AS cls,
                    round(avg(CASE WHEN metric = 'FCP' THEN value END) * 1e6) / 1e6 AS fcp,
                    round(avg(CASE WHEN metric = 'TTFB' AND coalesce(navigation_code, 0) NOT IN (3, 6) THEN value END) * 1e6) / 1e6 AS ttfb,
                    max(timestamp) AS latest, min(page) AS low_page, max(page) AS high_page,
                    min(iif(page IS NULL, NULL, timestamp)) AS first_page_at,
                    max(iif(page IS NULL, NULL, timestamp)) AS last_page_at,
                    min(client_key) AS low_client, max(client_key) AS high_client,
                    min(client_key & 7) AS low_known, max(client_key & 7) AS high_known
                 FROM (SELECT metric, value, navigation_code, timestamp, client_key, iif(page_key & 1, page_key, NULL) AS page
                       FROM web_vitals WHERE session_key = sessions.session_key
                       UNION ALL
                       SELECT NULL, NULL, NULL, timestamp, client_key, iif(page_key & 1, page_key, NULL)
                       FROM events WHERE session_key = sessions.session_key)))
    WHERE session_key IN (SELECT value FROM json_each(NEW.sessions));
    UPDATE sessions SET
        (page_views, events_count, identifications, converted, conversion_type, conversion_value, currency, first_referrer,
         first_campaign_key, last_campaign_key, first_click_ids, last_click_ids, active_seconds)
        = (SELECT page_views, events_count, identifications, converted, conversion_type, conversion_value, currency, first_referrer,
         first_campaign_key, last_campaign_key, first_click_ids, last_click_ids, active_seconds
           FROM derived_sessions AS d WHERE d.session_key = sessions.session_key)
    WHERE session_key IN (SELECT value FROM json_each(NEW.with_events));
    UPDATE sessions SET
        (visitor_key, started_at)
        = (SELECT visitor_key, started_at FROM derived_sessions AS d WHERE d.session_key = sessions.session_key)
    WHERE session_key IN (SELECT value FROM json_each(NEW.moved));
    INSERT INTO visitors
        (visitor_key, site, anonymous_id, first_seen, last_seen, total_sessions, total_events,
         display_name, user_id, traits)
    SELECT a.visitor_key, a.site, a.anonymous_id, min(s.started_at), max(s.ended_at), count(*), sum(s.events_count),
        iif(max(s.identifications) = 0, 'Visitor #' || substr(a.anonymous_id, -6),
            (SELECT d.display_name FROM derived_visitors AS d WHERE d.visitor_key = a.visitor_key)),
        iif(max(s.identifications) = 0, NULL,
            (SELECT d.user_id FROM derived_visitors AS d WHERE d.visitor_key = a.visitor_key)),
        iif(max(s.identifications) = 0, NULL,
            (SELECT d.traits FROM derived_visitors AS d WHERE d.visitor_key = a.visitor_key))
    FROM anonymous_ids AS a CROSS JOIN sessions AS s ON s.visitor_key = a.visitor_key
    WHERE a.visitor_key IN (SELECT visitor_key FROM sessions WHERE session_key IN (SELECT value FROM json_each(NEW.sessions))
                            UNION SELECT value FROM json_each(NEW.visitors))
    GROUP BY a.visitor_key
    ON CONFLICT (visitor_key) DO UPDATE SET
        display_name = excluded.display_name, first_seen = excluded.first_seen, last_seen = excluded.last_seen,
        total_sessions = excluded.total_sessions, total_events = excluded.total_events, user_id = excluded.user_id,
        traits = excluded.traits;
    DELETE FROM visitors WHERE visitor_key IN (SELECT value FROM json_each(NEW.visitors))
    AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.visitor_key = visitors.visitor_key);
    DELETE FROM samples WHERE chunk IN (SELECT value / 512 FROM json_each(NEW.sessions));
END;

-- Sessions and their web vitals packed for reading, 512 sessions a row: made in the background when they are at rest,
-- dropped when one of them changes. What has no row is read from the facts. Derived: `verify` makes each row again.
CREATE TABLE samples (
    chunk            INTEGER PRIMARY KEY,  -- session_key / 512
    first_at         INTEGER,              -- the earliest and the latest time of its web vitals
    last_at          INTEGER,
    first_started_at INTEGER,              -- the earliest and the latest start of its sessions
    last_started_at  INTEGER,
    vitals           BLOB NOT NULL,        -- columns, compressed: sidecar/store/samples.py
    sessions         BLOB NOT NULL
) STRICT;
CREATE TRIGGER samples_of_deleted AFTER DELETE ON sessions
BEGIN
    DELETE FROM samples WHERE chunk = OLD.session_key / 512;
END;

-- Sessions as people read them: the scalar fields of a session document.
CREATE VIEW session_list AS
SELECT
    s.session_key, f.site, f.funnel_id, f.subaccount_id, s.session_id, s.revision, s.shipped_revision, s.provisional,
    s.visitor_key, v.anonymous_id, v.display_name,
    s.started_at, s.ended_at, s.duration_seconds, s.page_views, s.events_count, s.vitals_count,
    s.converted, s.conversion_type, s.conversion_value, s.currency,
    fp.url AS first_page_url, lp.url AS last_page_url, s.first_referrer,
    fc.source AS first_source, fc.medium AS first_medium, fc.campaign AS first_campaign,
    lc.source AS last_source, lc.medium AS last_medium, lc.campaign AS last_campaign,
    d.device_type, d.browser_name, d.browser_version, d.os_name, d.os_version,
    p.country_code, p.country_name, p.region, p.city, a.ip_address,
    s.avg_lcp, s.avg_inp, s.avg_cls, s.avg_fcp, s.avg_ttfb, s.experience_score, s.active_seconds,
    c.bot
FROM sessions AS s
JOIN funnels AS f ON f.funnel_key = s.funnel_key
LEFT JOIN visitors AS v ON v.visitor_key = s.visitor_key
LEFT JOIN pages AS fp ON fp.page_key = s.first_page_key
LEFT JOIN pages AS lp ON lp.page_key = s.last_page_key
LEFT JOIN campaigns AS fc ON fc.campaign_key = s.first_campaign_key
LEFT JOIN campaigns AS lc ON lc.campaign_key = s.last_campaign_key
LEFT JOIN clients AS c ON c.client_key = s.first_client_key
LEFT JOIN clients AS d ON d.client_key = s.device_client_key
LEFT JOIN clients AS p ON p.client_key = s.place_client_key
LEFT JOIN clients AS a ON a.client_key = s.address_client_key;

-- What was not taken of a session, for people who ask why: the last 20 items that were repeated, superseded or refused.
-- A note: in no figure and no document, and `sidecar verify` does not look at it.
CREATE TABLE arrivals (
    session_key INTEGER NOT NULL REFERENCES sessions (session_key) ON DELETE CASCADE,
    metric      TEXT NOT NULL,  -- '' of an event
    id          TEXT NOT NULL,  -- '' where a refused item had none
    outcome     TEXT NOT NULL CHECK (outcome IN ('duplicate', 'superseded', 'rejected')),
    reason      TEXT NOT NULL,  -- why it was rejected, what a superseded report said, or ''
    times       INTEGER NOT NULL DEFAULT 1,
    first_at    INTEGER NOT NULL,  -- by the clock of the sidecar, as last_at
    last_at     INTEGER NOT NULL,
    PRIMARY KEY (session_key, metric, id, outcome, reason)
) STRICT, WITHOUT ROWID;

-- One secret a day, for the ids of clients that send none. Yesterday's is forgotten, so those ids cannot be turned back.
CREATE TABLE salts (
    day  INTEGER PRIMARY KEY,  -- days since the epoch
    salt BLOB NOT NULL
) STRICT;

-- Where finished sessions go. What is confirmed belongs to the current destination: `sessions.shipped_revision`.
CREATE TABLE destinations (
    address         TEXT PRIMARY KEY,  -- without credentials
    current         INTEGER NOT NULL CHECK (current IN (0, 1)),
    state           TEXT NOT NULL CHECK (state IN ('ready', 'waiting', 'blocked', 'off')),  -- off: no longer in the settings
    reason          TEXT,              -- why it is waiting or blocked, for people; names no address and no id
    since           INTEGER NOT NULL,  -- when this state began
    failures        INTEGER NOT NULL DEFAULT 0,  -- in a row; sets the next wait
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    asked_until     INTEGER NOT NULL DEFAULT 0,  -- the destination itself asked for silence until then (Retry-After)
    bytes_max       INTEGER,           -- unpacked size of a batch, learnt from 413
    bytes_max_until INTEGER NOT NULL DEFAULT 0,  -- then the full size is tried again: somebody may have raised the limit
    confirmed_at    INTEGER            -- last confirmation
) STRICT, WITHOUT ROWID;

-- A batch: session documents as frozen bytes, sent until the destination confirms. `body` is dropped then. A refused one is
-- split into two new ones; a line alone that is refused is parked; dropped: erased, or the destination has changed.
CREATE TABLE batches (
    batch_key    INTEGER PRIMARY KEY,
    batch_id     TEXT NOT NULL UNIQUE,  -- the Idempotency-Key
    address      TEXT NOT NULL REFERENCES destinations (address),
    site         TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('open', 'confirmed', 'split', 'parked', 'dropped')),
    body         BLOB,                  -- gzip of the lines
    body_bytes   INTEGER NOT NULL,      -- unpacked
    lines_count  INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,  -- counted before sending
    claimed_at   INTEGER NOT NULL,
    settled_at   INTEGER,
    answer       TEXT                   -- the last answer, for people
) STRICT;
CREATE INDEX batches_open ON batches (batch_key) WHERE state = 'open';

-- What each line of an open batch is: a session or a tombstone, up to a revision. Rows go when the batch is settled.
CREATE TABLE batch_lines (
    batch_key     INTEGER NOT NULL REFERENCES batches (batch_key),
    line          INTEGER NOT NULL,
    session_key   INTEGER REFERENCES sessions (session_key),
    tombstone_key INTEGER REFERENCES tombstones (tombstone_key),
    revision      INTEGER NOT NULL,
    PRIMARY KEY (batch_key, line),
    CHECK ((session_key IS NULL) <> (tombstone_key IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX batch_lines_by_session ON batch_lines (session_key);
CREATE INDEX batch_lines_by_tombstone ON batch_lines (tombstone_key) WHERE tombstone_key IS NOT NULL;

-- A session that the destination refused at this revision. It is sent again when it changes or is requeued.
CREATE TABLE parked (
    session_key        INTEGER PRIMARY KEY REFERENCES sessions (session_key),
    revision           INTEGER NOT NULL,
    confirmed_revision INTEGER NOT NULL,  -- what was confirmed before: where a requeued session goes on; -1: nothing
    reason             TEXT NOT NULL,
    batch_id           TEXT NOT NULL,
    parked_at          INTEGER NOT NULL,
    discarded_at       INTEGER            -- given up by a person
) STRICT;

-- Batches received from other sidecars: the answer given, for a repeat of the same bytes under the same key.
CREATE TABLE receipts (
    idempotency_key TEXT PRIMARY KEY,
    digest          BLOB NOT NULL,
    answer          TEXT NOT NULL,  -- JSON
    received_at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX receipts_by_age ON receipts (received_at);

-- A visitor that was erased: nothing is held of it but hashes, by which what comes later is refused, and which ship
-- upstream. `visitor_hash` is SHA-256, in hex, of the site, a zero byte and the visitor's id.
CREATE TABLE tombstones (
    tombstone_key    INTEGER PRIMARY KEY,
    site             TEXT NOT NULL,
    visitor_hash     TEXT NOT NULL,
    erased_at        INTEGER NOT NULL,
    revision         INTEGER NOT NULL,             -- grows with each change; a time in ms
    shipped_revision INTEGER NOT NULL DEFAULT -1,  -- up to which the destination has confirmed or refused it; -1: none
    refusal          TEXT,                         -- why the destination refused it
    UNIQUE (site, visitor_hash)
) STRICT;
CREATE INDEX tombstones_to_ship ON tombstones (revision) WHERE revision > shipped_revision;

-- The sessions that went with it: SHA-256, in hex, of the site, a zero byte, the funnel's id, a zero byte, the session's id.
CREATE TABLE tombstone_sessions (
    tombstone_key INTEGER NOT NULL REFERENCES tombstones (tombstone_key),
    session_hash  TEXT NOT NULL,
    PRIMARY KEY (tombstone_key, session_hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstone_sessions_by_hash ON tombstone_sessions (session_hash);
