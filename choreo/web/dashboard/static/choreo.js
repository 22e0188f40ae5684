// Keeps the page as the log is. Parts marked data-live are fetched again, as part of the same page, when the server
// tells of a change; what the reader has opened, focused or scrolled stays. Without this script the page is the same, at rest.
"use strict";

(() => {
  const source = document.body.dataset.events;
  const button = document.getElementById("live");
  if (!source || !button || !document.querySelector("[data-live]")) return;

  const LEAST_MS = 800; // between two fetches, however fast the log grows
  const REST_MS = 20000; // without any change: ages go on
  const text = document.getElementById("live-text");
  const announce = document.getElementById("announce");
  let events = null, paused = false, wanted = false, busy = false, last = Date.now(), polling = 0, failures = 0;

  function show(state) {
    button.hidden = false;
    button.className = "live " + (state === "Live" ? "on" : "off");
    button.setAttribute("aria-pressed", String(!paused));
    button.title = paused ? "Show changes as they happen" : "Stop showing changes";
    text.textContent = state;
  }

  function listen() {
    events = new EventSource(source);
    events.onopen = () => { if (!paused) show("Live"); };
    events.onerror = () => {
      if (paused) return;
      show("Reconnecting");
      if (events.readyState === EventSource.CLOSED) setTimeout(() => { if (!paused) listen(); }, 5000);
    };
    events.addEventListener("ready", want); // what has happened since the page was drawn
    events.addEventListener("change", want);
    events.addEventListener("reset", want);
  }

  function want() {
    if (wanted || paused) return;
    wanted = true;
    setTimeout(refresh, Math.max(250, last + LEAST_MS - Date.now()));
  }

  async function refresh() {
    wanted = false;
    if (paused || document.hidden) return;
    if (busy) { want(); return; }
    busy = true;
    try {
      const answer = await fetch(document.body.dataset.self || location.href, { headers: { accept: "text/html" }, redirect: "error" });
      if (!answer.ok) throw new Error(String(answer.status));
      take(new DOMParser().parseFromString(await answer.text(), "text/html"));
      failures = 0;
    } catch (error) {
      failures += 1;
      if (failures < 5) setTimeout(want, 2000 * failures);
    } finally {
      busy = false;
      last = Date.now();
      poll();
    }
  }

  // Puts the fetched parts in the place of those here.
  function take(page) {
    const said = [];
    for (const here of document.querySelectorAll("[data-live]")) {
      const there = page.getElementById(here.id);
      if (!there) { here.replaceChildren(); continue; }
      if (here.innerHTML === there.innerHTML) { copyAttributes(there, here); continue; }
      const told = (part) => new Map([...[part], ...part.querySelectorAll("[data-announce]")]
        .filter((each) => each.dataset.announce && each.id).map((each) => [each.id, each.dataset.announce]));
      const before = told(here), after = told(there);
      const open = [...here.querySelectorAll("details[open][id]")].map((each) => each.id);
      const scrolled = [...here.querySelectorAll(".scroll, pre")].map((each) => [each.scrollLeft, each.scrollTop]);
      const focused = here.contains(document.activeElement) ? pathOf(here, document.activeElement) : null;
      for (const id of open) there.querySelector("#" + CSS.escape(id))?.setAttribute("open", "");
      here.replaceChildren(...[...there.childNodes].map((node) => document.importNode(node, true)));
      copyAttributes(there, here);
      [...here.querySelectorAll(".scroll, pre")].forEach((each, number) => {
        if (scrolled[number]) [each.scrollLeft, each.scrollTop] = scrolled[number];
      });
      if (focused) elementAt(here, focused)?.focus({ preventScroll: true });
      for (const [id, words] of after) {
        if (before.get(id) === words) continue;
        if (before.has(id) && said.length < 3 && !said.includes(words)) said.push(words);
        document.getElementById(id)?.classList.add("changed");
      }
    }
    if (said.length) announce.textContent = said.join("; ");
  }

  function copyAttributes(there, here) {
    for (const name of ["data-announce", "data-poll"]) {
      if (there.hasAttribute(name)) here.setAttribute(name, there.getAttribute(name));
      else here.removeAttribute(name);
    }
  }

  function pathOf(root, element) {
    if (element.id) return element.id;
    const path = [];
    for (let each = element; each !== root; each = each.parentElement) path.unshift([...each.parentElement.children].indexOf(each));
    return path;
  }

  function elementAt(root, path) {
    if (typeof path === "string") return document.getElementById(path);
    return path.reduce((each, number) => each?.children[number], root);
  }

  function poll() {
    clearTimeout(polling);
    const soon = document.querySelector("[data-poll]");
    polling = setTimeout(want, soon ? Number(soon.dataset.poll) : REST_MS);
  }

  button.addEventListener("click", () => {
    paused = !paused;
    if (paused) {
      events?.close();
      clearTimeout(polling);
      show("Paused");
    } else {
      show("Reconnecting");
      listen();
      want();
    }
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) want(); });
  window.addEventListener("pagehide", () => events?.close());
  window.addEventListener("pageshow", (event) => { if (event.persisted && !paused) { listen(); want(); } });
  if (location.hash.startsWith("#record-")) document.getElementById(location.hash.slice(1))?.setAttribute("open", "");
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#record-"]');
    if (link) document.getElementById(link.getAttribute("href").slice(1))?.setAttribute("open", "");
  });

  listen();
  poll();
})();
