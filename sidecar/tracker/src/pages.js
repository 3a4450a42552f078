/** @file Page views: the load, single-page navigations, restores from the back/forward cache. */

import { guarded } from './guard.js';
import { touchSession } from './identity.js';
import { pageAt } from './text.js';

/**
 * A page view, and the vitals that belong to it. They stay with its session, whatever session runs when they come.
 *
 * @typedef {object} View
 * @property {'load' | 'restore' | 'soft'} kind
 * @property {string} url
 * @property {string} referrer
 * @property {number} time epoch ms
 * @property {string} title '' until it is settled
 * @property {string} session '' until the gate opens
 */

/** Frameworks change the address first and the title when they have rendered. */
const TITLE_MS = 100;

/** Reports of a soft navigation come late; more than a few back they come no more. */
const SOFT_VIEWS_MAX = 20;

/**
 * @param {(act: () => void) => void} gate
 * @param {(view: View) => void} record
 */
export function createPages(gate, record) {
  /** @type {View | null} */
  let pending = null;
  let timer = 0;
  /** The load or the newest restore. @type {View | null} */
  let hard = null;
  /** @type {View[]} */
  let soft = [];
  /** Metric instance -> the view of its first report. @type {Map<string, View>} */
  let instances = new Map();
  let here = pageAt(location.href);

  /** @param {View} view */
  function sessionOf(view) {
    view.session = view.session || touchSession(view.time);
    return view.session;
  }

  function settle() {
    if (!pending) return;
    clearTimeout(timer);
    const view = pending;
    pending = null;
    view.title = document.title;
    gate(() => {
      sessionOf(view);
      record(view);
    });
  }

  /**
   * @param {View['kind']} kind
   * @param {string} referrer
   */
  function begin(kind, referrer) {
    settle();
    here = pageAt(location.href);
    /** @type {View} */
    const view = { kind, url: here.url, referrer, time: Date.now(), title: '', session: '' };
    if (kind === 'soft') soft = [...soft.slice(1 - SOFT_VIEWS_MAX), view];
    else hard = view;
    gate(() => sessionOf(view));
    pending = view;
    timer = setTimeout(guarded(settle), TITLE_MS);
  }

  /**
   * A changed path or query is a page view; a changed fragment is not, unless it is a hash router's. A *replaced* address
   * counts only with a new path: sites clean `?utm_...` away or keep a filter there. Replaced while the view is still
   * unsettled it is a redirect, and the view gets the final address.
   *
   * @type {(replaced: boolean) => void}
   */
  const moved = guarded((replaced) => {
    const before = here;
    const after = pageAt(location.href);
    if (after.path === before.path && after.query === before.query) return;
    here = after;
    if (replaced && pending) pending.url = after.url;
    else if (!replaced || after.path !== before.path) begin('soft', before.url);
  });

  function watch() {
    const { navigation } = /** @type {any} */ (window);
    if (navigation && navigation.addEventListener) {
      const changed = (/** @type {any} */ event) => moved(event.navigationType === 'replace');
      navigation.addEventListener('currententrychange', changed);
      return;
    }
    for (const name of /** @type {const} */ (['pushState', 'replaceState'])) {
      const original = history[name];
      history[name] = function (...words) {
        const result = original.apply(this, words);
        moved(name === 'replaceState');
        return result;
      };
    }
    addEventListener('popstate', () => moved(false)); // hash changes too
  }

  /**
   * @param {import('web-vitals').Metric} metric
   * @returns {View}
   */
  function viewOf(metric) {
    let view = instances.get(metric.id) || null;
    if (!view && metric.navigationType === 'soft-navigation') {
      const { url } = pageAt(metric.navigationURL || '');
      view = soft.filter((each) => each.url === url).pop() || soft[soft.length - 1] || null;
    }
    view = view || hard || { kind: 'load', url: here.url, referrer: '', time: Date.now(), title: '', session: '' };
    instances.set(metric.id, view);
    return view;
  }

  /** Ids have been withdrawn: what comes next belongs to a new session. */
  function forget() {
    clearTimeout(timer);
    pending = null;
    instances = new Map();
    for (const view of [hard, ...soft]) if (view) view.session = '';
  }

  return {
    begin,
    settle,
    watch,
    viewOf,
    sessionOf,
    forget,
    /** A view by hand; one that is just being made is that one. */
    page() {
      if (!pending) begin('soft', here.url);
      settle();
    },
  };
}
