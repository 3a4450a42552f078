/** @file Texts as the sidecar takes them. */

/**
 * @param {unknown} value
 * @param {number} max UTF-16 units; the sidecar cuts at the same place
 * @returns {string} without lone surrogates: one of them costs the whole item
 */
export function clean(value, max) {
  return String(value).slice(0, max).replace(/\p{Cs}/gu, '\ufffd');
}

/**
 * The fragment is left out (servers never see it, and it may hold a token) unless a hash router lives in it.
 *
 * @param {string} address
 * @returns {{url: string, path: string, query: string}} `path` includes the route of a hash router
 */
export function pageAt(address) {
  try {
    const url = new URL(address);
    if (!/^#[!/]/.test(url.hash)) url.hash = '';
    url.username = url.password = '';
    return {
      url: clean(url.href, 2048),
      path: clean(url.pathname + url.hash, 2048),
      query: url.search,
    };
  } catch (error) {
    return { url: clean(address, 2048), path: '', query: '' };
  }
}

/** @returns {string} about 26 characters of base 36, 128 random bits; `randomUUID` is missing on plain http. */
export function randomId() {
  const words = new Uint32Array(4);
  crypto.getRandomValues(words);
  return Array.from(words, (word) => word.toString(36)).join('');
}

/**
 * @param {string} text
 * @returns {number} bytes of its UTF-8, which is what limits count
 */
export function byteLength(text) {
  return new TextEncoder().encode(text).length;
}
