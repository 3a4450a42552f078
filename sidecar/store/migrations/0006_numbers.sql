-- A revenue or activeTime of -2**63 does not count, as any other beyond 1e12: abs() of it was an error. A revision stays
-- within what documents may say.
DROP TRIGGER derive;
DROP VIEW derived_sessions;
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
END;
