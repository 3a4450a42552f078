/** @file localStorage where there is one, memory where there is none or it is full. */

const PREFIX = 'sidecar.';

/** What could not be written; it counts before what an earlier write left behind. */
const memory = new Map();

/**
 * @param {string} name
 * @returns {string | null}
 */
export function read(name) {
  if (memory.has(name)) return memory.get(name);
  try {
    return localStorage.getItem(PREFIX + name);
  } catch (error) {
    return null; // blocked, or a sandboxed frame: the getter itself throws
  }
}

/**
 * @param {string} name
 * @returns {any} null where nothing readable is stored
 */
export function readJson(name) {
  try {
    return JSON.parse(read(name) || 'null');
  } catch (error) {
    return null; // somebody else wrote there
  }
}

/**
 * @param {string} name
 * @param {string} text
 * @returns {boolean} whether it outlives the page
 */
export function write(name, text) {
  try {
    localStorage.setItem(PREFIX + name, text);
    memory.delete(name);
    return true;
  } catch (error) {
    memory.set(name, text);
    return false;
  }
}

/** @param {string} name */
export function erase(name) {
  memory.delete(name);
  try {
    localStorage.removeItem(PREFIX + name);
  } catch (error) {
    memory.delete(name); // blocked: memory was all there is
  }
}

/**
 * @param {string} start
 * @returns {string[]} the stored names that begin so, those in memory left out
 */
export function names(start) {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(PREFIX + start))
      .map((key) => key.slice(PREFIX.length));
  } catch (error) {
    return [];
  }
}

/**
 * Calls back when another tab erases `name`. `localStorage.clear()` by the site does not count.
 *
 * @param {string} name
 * @param {(old: string | null) => void} then
 */
export function onErased(name, then) {
  addEventListener('storage', (event) => {
    if (event.key === PREFIX + name && event.newValue === null) then(event.oldValue);
  });
}
