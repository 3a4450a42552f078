/** @file Nothing is stored or sent before it may be. */

/** A page may call a lot before consent is given; what is beyond that is left out. */
const WAITING_MAX = 500;

export function createGate() {
  /** @type {'waiting' | 'open' | 'closed'} */
  let state = 'waiting';
  /** @type {(() => void)[]} */
  let waiting = [];

  return {
    /** @param {() => void} act now, when the gate opens, or never */
    pass(act) {
      if (state === 'open') act();
      else if (state === 'waiting' && waiting.length < WAITING_MAX) waiting.push(act);
    },
    open() {
      if (state !== 'waiting') return;
      state = 'open';
      const acts = waiting;
      waiting = [];
      for (const act of acts) act();
    },
    /** What comes now is nobody's business, not even later. */
    close() {
      state = 'closed';
      waiting = [];
    },
    /** After a close: what comes from now on may wait again. */
    wait() {
      state = 'waiting';
    },
    isOpen: () => state === 'open',
    isClosed: () => state === 'closed',
  };
}
