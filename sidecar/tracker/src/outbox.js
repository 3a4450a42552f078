/**
 * @file The queue: items are kept, in localStorage too, until the sidecar has answered for them.
 *
 * How an item travels:
 * - While the page lives, `fetch` with `keepalive`: it outlives the page like a beacon and brings an answer. This also
 *   holds for a page that is merely hidden; most of those come back.
 * - When the page is left, `sendBeacon`: nobody would hear the answer, and an unanswered `fetch` can cost the page its
 *   place in the back/forward cache. A beacon that was taken may still have met a 503 or a dead line, so its items stay
 *   stored, and the next page that stays long enough to hear an answer adds them to requests that it makes anyway. A
 *   second copy costs some 2 KB and is a `duplicate` to the sidecar; any other confirmation would cost a request a page.
 *
 * Every page writes only its own entry, for localStorage has no transactions. The next page takes over the entry of one
 * that was left, and after a minute that of one that died: it writes the items into its own entry first and erases the
 * old one then, so that at every moment somebody holds them. Two pages that take the same entry at once send it twice,
 * which is harmless.
 */

import { log } from './guard.js';
import { erase, names, read, readJson, write } from './storage.js';
import { byteLength, randomId } from './text.js';

/** A first flush soon, so that "now online" is true and the first vitals go along; then one in a quarter minute. */
const FIRST_MS = 2000;
const GAP_MS = 15 * 1000;

/** Bounds of one request: the sidecar takes 100 items and 64 KiB; what browsers keep alive is 64 KiB, too. */
const BATCH_ITEMS_MAX = 100;
const BATCH_BYTES_MAX = 60 * 1024;

const QUEUE_ITEMS_MAX = 500;
const QUEUE_BYTES_MAX = 256 * 1024;

/** A page without news for so long is taken for dead; if it is not, its items are sent twice. */
const DEAD_MS = 60 * 1000;

/** Older times are outside the window that the sidecar accepts. */
const ITEM_AGE_MAX_MS = 7 * 24 * 60 * 60 * 1000;

const ANSWER_MS = 30 * 1000;
const RETRY_FIRST_MS = 5000;
const RETRY_MAX_MS = 5 * 60 * 1000;
const RETRY_AFTER_MAX_MS = 60 * 60 * 1000;

/** @type {Record<string, string>} */
const PATHS = { vital: 'web-vitals', event: 'events', erasure: 'delete' };

/**
 * @typedef {object} Entry one item in the queue
 * @property {'vital' | 'event' | 'erasure'} kind
 * @property {string} name the same for two reports of one fact
 * @property {string} key `apiKey` of the funnel that it belongs to: the next page may be another funnel's
 * @property {string} json
 * @property {number} bytes
 * @property {number} at epoch ms
 * @property {boolean} [sent] it went out with a beacon, whose answer nobody heard
 * @property {boolean} [flying] a request with it awaits its answer
 */

/** @param {Entry} entry */
const isErasure = (entry) => entry.kind === 'erasure';

/**
 * @param {Entry} entry as another page stored it
 * @param {number} now epoch ms
 */
const isDue = (entry, now) => Boolean(entry && PATHS[entry.kind] && now - entry.at < ITEM_AGE_MAX_MS);

/** Firefox before 133 cannot. */
const canKeepAlive = () => typeof Request === 'function' && 'keepalive' in Request.prototype;

/**
 * @param {object} options
 * @param {string} options.base
 * @param {string} options.key
 * @param {(reason: string) => void} options.onRefused the sidecar said 202: it does not want such items
 */
export function createOutbox({ base, key, onRefused }) {
  const own = 'queue.' + randomId();
  /** Oldest first. @type {Entry[]} */
  let entries = [];
  let timer = 0;
  let lastFlush = -Infinity;
  let retryAt = 0;
  let failures = 0;
  let draining = false;
  let saving = false;
  let left = false;
  /** Whether all of `entries` is in localStorage. */
  let stored = false;

  function save() {
    saving = false;
    if (!entries.length) {
      erase(own);
      stored = false;
      return;
    }
    const items = entries.map(({ flying, ...entry }) => entry);
    stored = write(own, JSON.stringify({ base, at: Date.now(), left, items }));
  }

  /** A burst of items in one task is one write. */
  function saveSoon() {
    if (saving) return;
    saving = true;
    Promise.resolve().then(() => saving && save());
  }

  function bound() {
    let bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0);
    while (entries.length > QUEUE_ITEMS_MAX || bytes > QUEUE_BYTES_MAX) {
      const oldest = entries.findIndex((entry) => !isErasure(entry));
      if (oldest < 0) return;
      bytes -= entries[oldest].bytes;
      entries.splice(oldest, 1);
    }
  }

  /** @param {Entry[]} more */
  function append(more) {
    const replaced = new Set(more.map((entry) => entry.kind + entry.name));
    entries = entries.filter((entry) => !replaced.has(entry.kind + entry.name)).concat(more);
    bound();
  }

  /**
   * @param {Entry['kind']} kind
   * @param {string} name a newer report takes the place of one that has the same name
   * @param {object} item
   */
  function add(kind, name, item) {
    const json = JSON.stringify(item);
    log('kept', kind, item);
    append([{ kind, name, key, json, bytes: byteLength(json), at: Date.now() }]);
    saveSoon();
    schedule();
  }

  /**
   * @param {boolean} leaving
   * @returns {Entry[]} what one request can carry; empty: nothing is left to send
   */
  function take(leaving) {
    /** @type {Entry[]} */
    const batch = [];
    let bytes = 0;
    for (const entry of entries) {
      if (entry.flying || (leaving && entry.sent)) continue;
      const [first] = batch;
      if (first && (entry.kind !== first.kind || entry.key !== first.key)) continue;
      bytes += entry.bytes + 1;
      if (first && bytes > BATCH_BYTES_MAX) break;
      batch.push(entry);
      if (isErasure(entry) || batch.length === BATCH_ITEMS_MAX) break;
    }
    for (const entry of batch) entry.flying = true;
    return batch;
  }

  /** @param {Entry[]} batch */
  function request([first, ...rest]) {
    const url = base + PATHS[first.kind] + (first.key ? '?apiKey=' + encodeURIComponent(first.key) : '');
    const list = '[' + [first, ...rest].map((entry) => entry.json).join() + ']';
    const bodies = { vital: list, event: '{"events":' + list + '}', erasure: first.json };
    return { url, body: bodies[first.kind] };
  }

  /** @param {Entry[]} batch answered for, whatever the answer */
  function drop(batch) {
    entries = entries.filter((entry) => !batch.includes(entry));
  }

  /**
   * @param {Entry[]} batch
   * @param {number} retryAfterMs 0 where nothing was said; another origin's header cannot be read unless it is exposed
   */
  function putBack(batch, retryAfterMs) {
    for (const entry of batch) entry.flying = false;
    const backoff = Math.min(RETRY_FIRST_MS * 2 ** failures, RETRY_MAX_MS);
    failures += 1;
    // Half of it by chance: after an outage the visitors' browsers must not come back all at once.
    const wait = backoff / 2 + (backoff / 2) * Math.random();
    retryAt = Date.now() + Math.max(wait, Math.min(retryAfterMs, RETRY_AFTER_MAX_MS));
  }

  /**
   * @param {Response} answer
   * @returns {boolean} whether the same request may succeed later
   */
  function isPassing({ status }) {
    return status >= 500 || status === 408 || status === 425 || status === 429;
  }

  /**
   * @param {Entry[]} batch
   * @returns {Promise<boolean>} whether it was answered for; never rejects
   */
  async function deliver(batch) {
    const { url, body } = request(batch);
    let answered = false;
    let alarm;
    try {
      const stop = new AbortController();
      alarm = setTimeout(() => stop.abort(), ANSWER_MS);
      // A string goes as text/plain, which needs no preflight.
      const answer = await fetch(url, { method: 'POST', body, keepalive: true, signal: stop.signal });
      // Read to its end: until then the request counts against the 64 KiB that a page may keep alive.
      const text = await answer.text();
      log(answer.status, url);
      if (isPassing(answer)) {
        putBack(batch, 1000 * Number(answer.headers.get('Retry-After')) || 0);
      } else {
        answered = true;
        if (failures) {
          // It is back: nothing has to sit out the rest of the wait.
          clearTimeout(timer);
          timer = failures = 0;
        }
        drop(batch); // also what is `rejected`, and what a 4xx refuses: it would be refused again
        if (answer.status === 202) onRefused(JSON.parse(text).reason);
      }
    } catch (error) {
      log(error);
      if (!answered) putBack(batch, 0);
    }
    clearTimeout(alarm);
    save();
    schedule();
    return answered;
  }

  /**
   * @param {Entry[]} batch
   * @returns {boolean} whether the browser took it
   */
  function beacon(batch) {
    const { url, body } = request(batch);
    if (!navigator.sendBeacon || !navigator.sendBeacon(url, body)) return false;
    log('beacon', url);
    for (const entry of batch) entry.sent = true;
    return true;
  }

  /** One request after the other, and none after a failed one: a sidecar in trouble meets one request a try. */
  async function drain() {
    if (draining) return;
    draining = true;
    lastFlush = Date.now();
    for (let batch = take(false); batch.length; batch = take(false)) {
      if (!(await deliver(batch))) break;
    }
    draining = false;
    schedule();
  }

  function schedule() {
    if (timer || draining || !entries.some((entry) => !entry.flying)) return;
    const now = Date.now();
    const usual = Math.max(FIRST_MS, Math.min(lastFlush + GAP_MS - now, GAP_MS));
    timer = setTimeout(
      () => {
        timer = 0;
        drain();
      },
      failures ? retryAt - now : usual,
    );
  }

  /**
   * Everything at once, also while a failure is being waited out: there may be no other chance.
   *
   * @param {boolean} leaving
   */
  function flush(leaving) {
    const unanswered = [];
    for (let batch = take(leaving); batch.length; batch = take(leaving)) {
      if ((leaving || !canKeepAlive()) && beacon(batch)) unanswered.push(...batch);
      else deliver(batch);
    }
    for (const entry of unanswered) entry.flying = false;
    lastFlush = Date.now();
    save();
  }

  /**
   * Takes over what pages before this one, or dead ones, could not see answered.
   *
   * @param {boolean} [forgetting] of all pages, and only what asks for an erasure; the rest is erased
   */
  function adopt(forgetting) {
    const now = Date.now();
    for (const name of names('queue.')) {
      if (name === own) continue;
      const found = readJson(name);
      if (!found || !Array.isArray(found.items) || !(now - found.at < ITEM_AGE_MAX_MS)) {
        erase(name); // broken, or of a tracker whose pages nobody opens any more
      } else if (found.base === base && (forgetting || found.left || Math.abs(now - found.at) > DEAD_MS)) {
        const later = entries;
        entries = [];
        append(found.items.filter((/** @type {Entry} */ entry) => isDue(entry, now) && (!forgetting || isErasure(entry))));
        append(later);
        save();
        if (forgetting || stored || !entries.length) erase(name);
      }
    }
    schedule();
  }

  function empty() {
    entries = entries.filter(isErasure);
    save();
  }

  return {
    add,
    flush,
    adopt,
    save,
    drain,
    /** The page is being left: its entry may be taken over from now on. */
    leave() {
      left = true;
    },
    /** Back from the back/forward cache: if the entry is gone, another page has taken the items over. */
    comeBack() {
      left = false;
      if (stored && read(own) === null) entries = [];
      adopt();
      save();
    },
    /** Forgets this page's items. */
    empty,
    /** Forgets every page's items. */
    wipe() {
      empty();
      adopt(true);
    },
  };
}
