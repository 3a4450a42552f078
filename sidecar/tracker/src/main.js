/** @file Puts the parts together, and `window.sidecar` in front of them. */

import { createActivity } from './activity.js';
import { createGate } from './gate.js';
import { guarded, log, logToConsole } from './guard.js';
import {
  consent,
  forgetIdentity,
  giveConsent,
  isForgotten,
  isVisitor,
  knownVisitorId,
  setUserId,
  takeConsent,
  touchSession,
  visitorId,
} from './identity.js';
import { eventItem, snapshot, vitalItem } from './items.js';
import { createOutbox } from './outbox.js';
import { createPages } from './pages.js';
import { readSettings } from './settings.js';
import { onErased } from './storage.js';
import { clean } from './text.js';
import { watchVitals } from './vitals.js';

/** @typedef {{type?: unknown, revenue?: unknown, currency?: unknown, orderId?: unknown}} Conversion */

function start() {
  const sidecar = /** @type {any} */ (window).sidecar;
  if (sidecar && sidecar.track) return; // the tag stands there twice: one of them is enough

  const settings = readSettings();
  if (settings.debug) logToConsole();
  const { funnel } = settings;

  const gate = createGate();
  const outbox = createOutbox({ ...settings, onRefused });
  const pages = createPages(gate.pass, (view) => {
    keepEvent({ name: 'page_view', session: view.session, time: view.time, view });
  });
  const activity = createActivity((session, activeTime, time) => {
    keepEvent({ name: 'session_end', session, time, properties: { activeTime } });
  }, gate.isOpen);

  let seq = 0;
  let leaving = false;

  /** @param {Omit<Parameters<typeof eventItem>[0], 'funnel'>} event */
  function keepEvent(event) {
    const item = eventItem({ funnel, ...event });
    outbox.add('event', event.session + ' ' + item.eventId, item);
  }

  /**
   * @param {unknown} name
   * @param {unknown} [properties]
   * @param {string} [id]
   */
  function track(name, properties, id) {
    const eventName = typeof name === 'string' ? clean(name, 128) : '';
    if (!eventName) return log('no event name:', name);
    const copy = snapshot(properties);
    const time = Date.now();
    gate.pass(() => keepEvent({ name: eventName, session: touchSession(time), time, properties: copy, id }));
  }

  /** @param {Conversion} [conversion] */
  function conversion({ type, revenue, currency, orderId } = {}) {
    const amount = typeof revenue === 'string' && revenue.trim() ? Number(revenue) : revenue;
    const properties = {
      conversionType: type,
      revenue: typeof amount === 'number' && isFinite(amount) ? amount : undefined,
      currency,
      orderId,
    };
    // The same order is the same event: a reloaded "thank you" page must not sell twice.
    const id = orderId ? clean('order ' + (type || '') + ' ' + orderId, 128) : undefined;
    track('conversion', properties, id);
  }

  /**
   * @param {unknown} userId nothing: signed out
   * @param {unknown} [traits]
   */
  function identify(userId, traits) {
    gate.pass(() => setUserId(userId));
    if (userId !== undefined && userId !== null && userId !== '') {
      track('user_identified', { userId: clean(userId, 128), traits });
    }
  }

  /** @param {import('web-vitals').Metric} live the library changes it from report to report */
  function reportVital(live) {
    const metric = { ...live };
    const now = Date.now();
    seq += 1;
    const number = seq;
    gate.pass(() => {
      const view = pages.viewOf(metric);
      const session = pages.sessionOf(view);
      const item = vitalItem({ funnel, metric, view, session, seq: number, now });
      outbox.add('vital', session + ' ' + metric.name + ' ' + metric.id, item);
    });
  }

  /** This page's items and ids. */
  function clearPage() {
    pages.forget();
    activity.forget();
    outbox.empty();
  }

  /** The browser's. */
  function clear() {
    clearPage();
    outbox.wipe();
    forgetIdentity();
  }

  /** Another tab, or the sidecar's answer, has ended it for this page. */
  function stop() {
    gate.close();
    clearPage();
  }

  /** @param {string} reason */
  function onRefused(reason) {
    if (reason === 'bot') stop();
    if (reason !== 'do-not-track' && reason !== 'erased') return;
    gate.close();
    clear(); // neither wants this browser's ids to live on
  }

  function forget() {
    const visitor = knownVisitorId();
    gate.close();
    clear();
    if (!visitor) return;
    // The id is kept for this one purpose until the sidecar has heard it.
    outbox.add('erasure', visitor, { anonymousId: visitor });
    outbox.drain();
  }

  let revoked = false;

  function revokeConsent() {
    revoked = revoked || !gate.isClosed();
    gate.close();
    clear();
    takeConsent();
  }

  /** @param {unknown} [version] */
  function grantConsent(version) {
    giveConsent(version);
    if (revoked) gate.wait();
    open();
    if (revoked) pages.begin('soft', '');
    revoked = false;
  }

  let activated = false;

  function open() {
    const given = consent();
    if (!activated || gate.isOpen() || (given ? !given.consentGiven : settings.requireConsent)) return;
    if (gate.isClosed()) return;
    visitorId(); // now, not with the first item: a tab that is opened next must find it
    outbox.adopt();
    gate.open();
    activity.mark();
  }

  function hide() {
    pages.settle();
    activity.hide();
    outbox.flush(leaving);
  }

  const isHidden = () => document.visibilityState === 'hidden';

  function watchLife() {
    // Before the library's own listener, and capturing as it does: its reports after a restore belong to the new view.
    addEventListener(
      'pageshow',
      guarded((event) => {
        if (!event.persisted) return;
        leaving = false;
        if (isForgotten()) {
          clearPage();
          forgetIdentity();
        }
        outbox.comeBack();
        pages.begin('restore', document.referrer);
        activity.mark();
      }),
      true,
    );
    // Leaving fires `pagehide` first, and the library's last reports come with `visibilitychange`: sending waits for
    // that. A page that was hidden before gets no other event; and where a browser fires none, the entry is stored.
    addEventListener(
      'pagehide',
      guarded(() => {
        leaving = true;
        outbox.leave();
        if (isHidden()) hide();
        else outbox.save();
      }),
    );
    // On `window` and bubbling: after the library's listeners, which capture there.
    addEventListener(
      'visibilitychange',
      guarded(() => (isHidden() ? hide() : activity.mark())),
    );
  }

  /** A prerendered page is nobody's visit until it is shown. */
  function begin() {
    activated = true;
    watchLife();
    watchVitals(reportVital);
    pages.begin('load', document.referrer);
    pages.watch();
    activity.watch();
    // A page in the back/forward cache hears of it when it is back, and has a new id by then.
    onErased(
      'visitor',
      guarded((old) => isVisitor(old) && stop()),
    );
    open();
  }

  const api = {
    /** @type {(name: unknown, properties?: unknown) => void} */
    track: (name, properties) => track(name, properties),
    page: pages.page,
    identify,
    conversion,
    grantConsent,
    revokeConsent,
    forget,
  };
  for (const name of /** @type {(keyof typeof api)[]} */ (Object.keys(api))) {
    api[name] = guarded(/** @type {(...words: any[]) => void} */ (api[name]));
  }
  /** @type {any} */ (window).sidecar = api;

  if (/** @type {any} */ (document).prerendering) {
    addEventListener('prerenderingchange', guarded(begin), { once: true });
  } else {
    begin();
  }
}

guarded(start)();
