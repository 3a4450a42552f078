/** @file The five Core Web Vitals, by Google's library. */

import { onCLS, onFCP, onINP, onLCP, onTTFB } from 'web-vitals';
import { guarded } from './guard.js';

/**
 * Soft navigations count as page views here, so their vitals are measured as such where the browser can (Chromium 151
 * and later; the library looks). Elsewhere the vitals of the load go on.
 *
 * INP is reported whenever it changes, of which only the newest report is sent. By itself the library reports it when
 * the page is hidden, but looks at an interaction only when the browser is idle, up to a second later: of a visitor who
 * clicks and leaves it would look at the click after its last report, and INP would be lost (web-vitals 6.2.3).
 *
 * @param {(metric: import('web-vitals').Metric) => void} report
 */
export function watchVitals(report) {
  for (const on of [onLCP, onINP, onCLS, onFCP, onTTFB]) {
    guarded(() => on(guarded(report), { reportSoftNavs: true, reportAllChanges: on === onINP }))();
  }
}
