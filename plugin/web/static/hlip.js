// The page's own behaviour: CSRF, keys, ages that run, messages. The study's pictures are in viewer.js.
"use strict";

(() => {
  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
  let selected = "";
  let offset = 0; // the server's clock minus ours, in seconds

  // ---- requests ------------------------------------------------------------------------------------------
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-CSRF-Token"] = meta("csrf-token");
    if (event.detail.triggeringEvent?.type?.startsWith("sse:")) event.detail.headers["X-Live"] = "1";
  });
  document.addEventListener("htmx:responseError", (event) => {
    let text = "That did not work.";
    try { text = JSON.parse(event.detail.xhr.responseText).detail ?? text; } catch { /* not ours */ }
    say(text, true);
  });
  document.addEventListener("htmx:sendError", () => say("The server cannot be reached.", true));
  document.addEventListener("said", (event) => say(event.detail.value));
  document.addEventListener("htmx:beforeSend", ({ detail: { elt, xhr } }) => {
    xhr.addEventListener("loadend", () => {
      if (document.contains(elt)) return;
      // The stream has replaced the button meanwhile: what htmx triggers on the old one reaches nobody.
      const triggers = JSON.parse(xhr.getResponseHeader("HX-Trigger") ?? "{}");
      Object.entries(triggers).forEach(([name, value]) => {
        document.body.dispatchEvent(new CustomEvent(name, { bubbles: true, detail: { value } }));
      });
    });
  });

  function say(text, wrong = false) {
    const place = document.getElementById("said");
    place.textContent = text;
    place.classList.toggle("wrong", wrong);
    clearTimeout(say.timer);
    say.timer = setTimeout(() => { place.textContent = ""; }, 6000);
  }

  // ---- live ----------------------------------------------------------------------------------------------
  function live(is) {
    const mark = document.getElementById("live");
    if (!mark) return;
    mark.classList.toggle("off", !is);
    mark.textContent = is ? mark.dataset.live : mark.dataset.off;
  }
  document.addEventListener("htmx:sseOpen", () => live(true));
  document.addEventListener("htmx:sseError", () => live(false));

  function ages() {
    document.querySelectorAll("time[data-since]").forEach((time) => {
      if (time.dataset.since) time.textContent = duration(Date.now() / 1000 + offset - Number(time.dataset.since));
    });
  }
  function duration(seconds) {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= size) return `${Math.round(seconds / size)} ${unit}`;
    }
    return `${Math.max(0, Math.round(seconds))} s`;
  }

  // ---- the list: the selected study stays selected, and rows move to where they belong -----------------------
  const rows = () => [...document.querySelectorAll(".worklist tbody tr")];
  let before = new Map();

  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target?.id === "list") before = new Map(rows().map((row) => [row.dataset.uid, row.offsetTop]));
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.detail.elt?.id === "list") { arrived(); moved(); }
  });

  function arrived() {
    const list = document.getElementById("list");
    if (!list) return;
    offset = Number(list.dataset.at) - Date.now() / 1000;
    select(selected, false);
    ages();
  }
  function moved() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches || !before.size) return;
    rows().forEach((row) => {
      const was = before.get(row.dataset.uid);
      if (was === undefined) row.animate([{ backgroundColor: "#1d3a4b" }, { backgroundColor: "transparent" }], 1600);
      else if (was !== row.offsetTop) {
        row.animate([{ transform: `translateY(${was - row.offsetTop}px)` }, { transform: "none" }], { duration: 320, easing: "ease-out" });
      }
    });
  }
  function select(uid, scroll = true) {
    selected = uid;
    rows().forEach((row) => {
      const is = row.dataset.uid === uid;
      row.classList.toggle("selected", is);
      if (is) {
        row.setAttribute("aria-current", "true");
        if (scroll) { row.scrollIntoView({ block: "nearest" }); row.querySelector("a")?.focus({ preventScroll: true }); }
      } else row.removeAttribute("aria-current");
    });
  }
  function step(by) {
    const all = rows();
    if (!all.length) return;
    const at = all.findIndex((row) => row.dataset.uid === selected);
    const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1);
    select(all[next].dataset.uid);
  }
  document.addEventListener("click", (event) => {
    const row = event.target.closest?.(".worklist tbody tr");
    if (row && !event.target.closest("a") && !String(getSelection())) location.assign(`/studies/${row.dataset.uid}`);
  });
  document.addEventListener("focusin", (event) => {
    const row = event.target.closest?.(".worklist tbody tr");
    if (row && row.dataset.uid !== selected) select(row.dataset.uid, false);
  });

  // ---- keys ----------------------------------------------------------------------------------------------
  const KEYS = {
    j: () => step(1), k: () => step(-1),
    "/": () => document.querySelector('input[type="search"]')?.focus(),
    "?": () => document.getElementById("help")?.showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inField = event.target.closest?.("input:not([type=range]):not([type=checkbox]), select, textarea");
    if (inField) {
      if (event.key === "Escape") inField.blur();
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && selected && event.target === document.body) {
      location.assign(`/studies/${selected}`);
    } else if (KEYS[event.key]) {
      KEYS[event.key]();
      event.preventDefault();
    }
  });

  document.addEventListener("acted", (event) => {
    event.target.closest?.("dialog")?.close();
    if (event.target.matches?.("form")) event.target.reset();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("[data-close]")) event.target.closest("dialog").close();
    const opener = event.target.closest?.("[data-dialog]");
    if (opener) document.getElementById(opener.dataset.dialog)?.showModal();
  });
  addEventListener("DOMContentLoaded", arrived);
  setInterval(ages, 5000);
})();
