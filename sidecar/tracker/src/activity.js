/** @file Engaged time: visible, and used in the last half minute. */

import { guarded } from './guard.js';
import { timeIn, touchSession } from './identity.js';

/** After an input the visitor counts as engaged for so long. */
const IDLE_MS = 30 * 1000;

/** Mouse moves come by the hundred; one a second says the same. */
const SAMPLE_MS = 1000;

const INPUTS = ['pointerdown', 'keydown', 'scroll', 'mousemove', 'touchmove'];

/**
 * @param {(session: string, seconds: number, time: number) => void} report
 * @param {() => boolean} isOpen whether ids may be used
 */
export function createActivity(report, isOpen) {
  /** Last sign of life, epoch ms; 0 while hidden. */
  let marked = 0;
  let engagedMs = 0;
  /** The session in which the engaged time was spent. */
  let session = '';

  /** @param {number} now */
  function add(now) {
    if (!marked || !session) return;
    const gap = Math.max(0, Math.min(now - marked, IDLE_MS));
    engagedMs += gap;
    timeIn(session, marked + gap); // the session ran at least so long, even if it turns out to have ended since
  }

  /** @param {number} now */
  function settle(now) {
    const seconds = Math.round(engagedMs / 100) / 10;
    if (!session || !seconds) return;
    report(session, seconds, timeIn(session, now));
    engagedMs = 0;
  }

  function mark() {
    const now = Date.now();
    if (!isOpen() || document.visibilityState === 'hidden' || (marked && Math.abs(now - marked) < SAMPLE_MS)) return;
    add(now);
    const running = touchSession(now);
    if (running !== session) settle(now); // the visitor came back after the session had ended
    session = running;
    marked = now;
  }

  return {
    watch() {
      for (const name of INPUTS) addEventListener(name, guarded(mark), { capture: true, passive: true });
    },
    mark,
    /** The page is hidden: what was engaged so far is said. */
    hide() {
      const now = Date.now();
      add(now);
      marked = 0;
      settle(now);
    },
    forget() {
      marked = engagedMs = 0;
      session = '';
    },
  };
}
