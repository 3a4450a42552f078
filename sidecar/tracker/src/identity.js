/** @file Who is here: visitor, session, user, consent. All tabs of an origin share them. */

import { erase, read, readJson, write } from './storage.js';
import { clean, randomId } from './text.js';

/** A session ends after 30 minutes without activity, as in other analytics. */
const SESSION_MS = 30 * 60 * 1000;

/** Activity is written at most this often: a scroll is not worth a write to disk. */
const WRITE_MS = 5000;

/** @type {string | null} */
let visitor = null;

/** Whether `visitor` has been in the store. */
let visitorStored = false;

/** The session as this page last saw it, for when the store forgets. @type {{id: string, at: number} | null} */
let session = null;

/** Session id -> last time (epoch ms) at which this page knew it to be running. @type {Map<string, number>} */
const lastSeen = new Map();

/** @returns {string} this browser's visitor id, made where there is none */
export function visitorId() {
  visitor = read('visitor') || visitor || randomId();
  visitorStored = read('visitor') === visitor || write('visitor', visitor);
  return visitor;
}

/** @returns {boolean} whether the id was forgotten elsewhere, while this page could not notice */
export function isForgotten() {
  return visitorStored && read('visitor') === null;
}

/** @param {string | null} id whether this page's facts bear it */
export function isVisitor(id) {
  return visitor === id;
}

/** @returns {string | null} the id, where there is one already */
export function knownVisitorId() {
  return read('visitor') || visitor;
}

function heldSession() {
  const held = readJson('session');
  return held && typeof held.id === 'string' && typeof held.at === 'number' ? held : session;
}

/**
 * Activity: keeps the session running, or begins a new one.
 *
 * @param {number} now epoch ms
 * @returns {string} the session's id
 */
export function touchSession(now) {
  let held = heldSession();
  // A clock set back by more than a session's length ends it too.
  const ended = !held || Math.abs(now - held.at) > SESSION_MS;
  if (ended) held = { id: randomId(), at: now };
  if (ended || now - held.at > WRITE_MS || !session || session.id !== held.id) {
    held = { id: held.id, at: Math.max(held.at, now) };
    write('session', JSON.stringify(held));
  }
  session = held;
  lastSeen.set(held.id, Math.max(now, lastSeen.get(held.id) || 0));
  return held.id;
}

/**
 * The time to put on a fact of that session. A page that stays open reports on (CLS and INP whenever it is hidden) after
 * its session has ended; the present time would stretch that session over the whole pause, so such a fact gets the last
 * moment the session ran. Never less than an earlier answer: the newest report of a vital must win.
 *
 * @param {string} id
 * @param {number} now epoch ms
 * @returns {number} epoch ms
 */
export function timeIn(id, now) {
  const held = heldSession();
  if (held && held.id === id && now - held.at <= SESSION_MS) {
    lastSeen.set(id, Math.max(now, lastSeen.get(id) || 0));
  }
  return lastSeen.get(id) || now;
}

/** @returns {string | undefined} */
export function userId() {
  return read('user') || undefined;
}

/** @param {unknown} id nothing: signed out */
export function setUserId(id) {
  if (id === undefined || id === null || id === '') erase('user');
  else write('user', clean(id, 128));
}

export function forgetIdentity() {
  visitor = session = null;
  visitorStored = false;
  lastSeen.clear();
  for (const name of ['visitor', 'session', 'user']) erase(name);
}

/** @returns {{consentGiven: boolean, consentVersion?: string, consentTimestamp?: string} | null} null: never asked */
export function consent() {
  const held = readJson('consent');
  return held && typeof held.consentGiven === 'boolean' ? held : null;
}

/**
 * Consent banners grant on every page; the first time is the one that counts.
 *
 * @param {unknown} version
 */
export function giveConsent(version) {
  const consentVersion = version === undefined || version === null ? undefined : clean(version, 128);
  const held = consent();
  if (held && held.consentGiven && held.consentVersion === consentVersion) return;
  const given = { consentGiven: true, consentVersion, consentTimestamp: new Date().toISOString() };
  write('consent', JSON.stringify(given));
}

/** Kept as a plain "no" without any id, so that the next page does not begin anew. */
export function takeConsent() {
  write('consent', JSON.stringify({ consentGiven: false }));
}
