"use strict";
// Keeps the figures of an open overview up to date: asks every 10 s while the page is seen, and puts in place what
// changed, piece by piece. Without it the page is the same, as of when it was loaded. A page that had nothing to show is
// loaded again as soon as there is something.
(() => {
  const EVERY_MS = 10000;
  const LONGEST_MS = 300000;
  let wait = EVERY_MS;
  let timer = 0;
  let asking = false;

  const put = (html) => {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    if (document.querySelector("[data-empty]") && fresh.querySelector("[data-live]")) location.reload();
    for (const shown of document.querySelectorAll("[data-live]")) {
      const next = fresh.querySelector(`[data-live="${shown.dataset.live}"]`);
      const isInUse = shown.contains(document.activeElement); // the focus would be lost
      if (next && next.innerHTML !== shown.innerHTML && !isInUse) shown.replaceChildren(...next.childNodes);
    }
  };

  const ask = async () => {
    asking = true;
    try {
      const answer = await fetch(location.href, { headers: { "Sidecar-Live": "1" }, redirect: "error" });
      if (!answer.ok) throw new Error(answer.statusText);
      put(await answer.text());
      wait = EVERY_MS;
    } catch {
      wait = Math.min(2 * wait, LONGEST_MS); // restarting, or signed out: the figures stay as they are
    }
    asking = false;
    plan(wait);
  };

  const plan = (after) => {
    clearTimeout(timer);
    if (!document.hidden && !asking) timer = setTimeout(ask, after);
  };

  document.addEventListener("visibilitychange", () => plan(0));
  plan(wait);
})();
