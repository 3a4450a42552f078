/** @file Items as they go over the wire. */

import { log } from './guard.js';
import { consent, timeIn, userId, visitorId } from './identity.js';
import { byteLength, clean, pageAt, randomId } from './text.js';

/** The sidecar refuses an item over 16 KiB; the rest of an event takes up to about 6 (two URLs of 2,048 characters). */
const PROPERTIES_MAX = 10 * 1024;

const CLICK_IDS = /^(gclid|gbraid|wbraid|dclid|fbclid|msclkid|ttclid|twclid|li_fat_id|li_fbid|igshid|yclid|epik|rdt_cid|ScCid)$/i;

/** @typedef {import('./pages.js').View} View */

/** How iPads name their browsers in a User-Agent; Safari gives its version after `Version/`. */
const BROWSERS = { CriOS: 'Chrome Mobile iOS', FxiOS: 'Firefox iOS', EdgiOS: 'Edge Mobile', Version: 'Mobile Safari' };

/**
 * Screen, language and time zone. Names of device, browser and system are the sidecar's work, except for an iPad in
 * desktop mode: its User-Agent is a Mac's, and only the touch screen, which no Mac has, gives it away. The five count
 * together, so that browser and version have to be said with the others.
 */
function readDevice() {
  const { language, maxTouchPoints, userAgent } = navigator;
  const tablet = maxTouchPoints > 1 && /Macintosh/.test(userAgent);
  const browser = tablet && /(CriOS|FxiOS|EdgiOS|Version)\/([\d.]+)/.exec(userAgent);
  let timezone;
  try {
    timezone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  } catch (error) {
    timezone = undefined; // an unknown zone in the system's settings
  }
  return {
    screenWidth: screen.width,
    screenHeight: screen.height,
    language,
    timezone,
    deviceType: tablet ? 'tablet' : undefined,
    osName: tablet ? 'iPadOS' : undefined,
    browserName: browser ? BROWSERS[browser[1]] : undefined,
    browserVersion: browser ? browser[2] : undefined,
  };
}

/** @type {ReturnType<typeof readDevice> | undefined} */
let known;

/** One object for all items of a page: the sidecar keeps each different one. */
function device() {
  known = known || readDevice();
  return known;
}

/** @param {object} found undefined where it is empty, so that JSON leaves it out */
function orNothing(found) {
  return Object.keys(found).length ? found : undefined;
}

/**
 * @param {string} query
 * @returns {{utm?: object, clickIds?: object}}
 */
function campaign(query) {
  /** @type {Record<string, string>} */
  const utm = {};
  /** @type {Record<string, string>} */
  const clickIds = {};
  new URLSearchParams(query).forEach((value, name) => {
    const part = /^utm_(source|medium|campaign|term|content)$/i.exec(name);
    if (!value) return;
    if (part) utm[part[1].toLowerCase()] = clean(value, 512);
    else if (CLICK_IDS.test(name)) clickIds[name] = clean(value, 512);
  });
  return { utm: orNothing(utm), clickIds: orNothing(clickIds) };
}

/**
 * @param {unknown} properties
 * @returns {object | undefined} a copy as of now; nothing where it cannot be sent, for the event still counts
 */
export function snapshot(properties) {
  if (typeof properties !== 'object' || !properties || Array.isArray(properties)) return undefined;
  try {
    const text = JSON.stringify(properties, (_, value) => (typeof value === 'string' ? clean(value, 8192) : value));
    if (byteLength(text) <= PROPERTIES_MAX) return JSON.parse(text);
    log('properties left out: over', PROPERTIES_MAX, 'bytes');
  } catch (error) {
    log('properties left out:', error);
  }
  return undefined;
}

/**
 * @param {object} event
 * @param {string | undefined} event.funnel
 * @param {string} event.name
 * @param {string} event.session
 * @param {number} event.time epoch ms
 * @param {object} [event.properties]
 * @param {string} [event.id] random where it is missing
 * @param {View} [event.view] the page view that it is; else it happened on the present page
 */
export function eventItem({ funnel, name, session, time, properties, id, view }) {
  const page = pageAt(view ? view.url : location.href);
  return {
    eventId: id || randomId(),
    eventName: name,
    funnelId: funnel,
    properties,
    timestamp: time,
    context: {
      session: { sessionId: session },
      user: { anonymousId: visitorId(), userId: userId() },
      page: {
        url: page.url,
        path: page.path,
        title: clean(view ? view.title : document.title, 512),
        referrer: view ? clean(view.referrer, 2048) : undefined,
      },
      ...(view ? campaign(page.query) : {}),
      device: device(),
      gdpr: consent() || undefined,
    },
  };
}

/**
 * @param {object} report
 * @param {string | undefined} report.funnel
 * @param {import('web-vitals').Metric} report.metric
 * @param {View} report.view the page view that it belongs to
 * @param {string} report.session
 * @param {number} report.seq
 * @param {number} report.now epoch ms
 */
export function vitalItem({ funnel, metric, view, session, seq, now }) {
  // Never `location`: a report may come after the address has changed.
  const page = pageAt(metric.navigationURL || view.url);
  const { screenWidth, screenHeight, deviceType, osName, browserName, browserVersion } = device();
  return {
    sessionId: session,
    anonymousId: visitorId(),
    funnelId: funnel,
    metric: metric.name,
    value: metric.value,
    id: metric.id,
    rating: metric.rating,
    delta: metric.delta,
    navigationType: metric.navigationType,
    pageUrl: page.url,
    pagePath: page.path,
    pageTitle: clean(view.title || document.title, 512),
    screenWidth,
    screenHeight,
    deviceType,
    osName,
    browserName,
    browserVersion,
    gdpr: consent() || undefined,
    seq,
    timestamp: timeIn(session, now),
  };
}
