/** @file The five Core Web Vitals, by Google's library. */

import { onCLS, onFCP, onINP, onLCP, onTTFB } from 'web-vitals';
import { guarded } from './guard.js';

/**
 * Soft navigations count as page views here, so their vitals are measured as such where the browser can (Chromium 151
 * and later; the library looks). Elsewhere the vitals of the load go on.
 *
 * @param {(metric: import('web-vitals').Metric) => void} report
 */
export function watchVitals(report) {
  for (const on of [onLCP, onINP, onCLS, onFCP, onTTFB]) {
    guarded(() => on(guarded(report), { reportSoftNavs: true }))();
  }
}
