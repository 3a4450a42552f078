/** @file Nothing of ours may throw into the page, and nothing is logged unless the tag asks for it. */

/** @type {(...words: unknown[]) => void} */
export let log = () => undefined;

export function logToConsole() {
  log = (...words) => console.log('[sidecar]', ...words);
}

/**
 * @template {unknown[]} Words
 * @param {(...words: Words) => void} act
 * @returns {(...words: Words) => void} the same, its errors caught
 */
export function guarded(act) {
  return (...words) => {
    try {
      act(...words);
    } catch (error) {
      log(error);
    }
  };
}
