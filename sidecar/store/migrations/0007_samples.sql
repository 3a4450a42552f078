-- Web vitals packed for reading, 512 sessions a row: made in the background when they are at rest, dropped when one of
-- them changes. What has no row is read from the facts. Derived: `verify` makes each row again.
CREATE TABLE samples (
    chunk    INTEGER PRIMARY KEY,  -- session_key / 512
    first_at INTEGER,              -- the earliest and the latest time of its web vitals
    last_at  INTEGER,
    body     BLOB NOT NULL         -- columns, compressed: sidecar/store/samples.py
) STRICT;
CREATE TRIGGER samples_of_deleted AFTER DELETE ON sessions
BEGIN
    DELETE FROM samples WHERE chunk = OLD.session_key / 512;
END;

-- What changes a session drops its row.
DROP TRIGGER derive;
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
