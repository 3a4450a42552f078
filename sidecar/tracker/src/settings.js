/** @file What the script tag says. */

/**
 * @typedef {object} Settings
 * @property {string} base address of `api/track/`, beside the script's own address
 * @property {string | undefined} funnel
 * @property {string} key '' where the funnel has none
 * @property {boolean} debug
 * @property {boolean} requireConsent
 */

/**
 * Must run while the script itself does: `currentScript` is null afterwards.
 *
 * @returns {Settings}
 */
export function readSettings() {
  const tag =
    /** @type {HTMLScriptElement | null} */ (document.currentScript) ||
    /** @type {HTMLScriptElement | null} */ (document.querySelector('script[src*="sidecar.js"]'));
  const attribute = (/** @type {string} */ name) => (tag && tag.getAttribute('data-' + name)) || '';
  const has = (/** @type {string} */ name) => Boolean(tag && tag.hasAttribute('data-' + name));
  return {
    base: new URL('api/track/', (tag && tag.src) || document.baseURI).href,
    funnel: attribute('funnel') || undefined,
    key: attribute('key'),
    debug: has('debug'),
    requireConsent: has('require-consent'),
  };
}
