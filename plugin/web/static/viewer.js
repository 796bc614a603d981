// The study's pictures on a canvas: prepared slices through a window, and where the model looked over them.
"use strict";

(() => {
  const MAX_KEPT = 320; // pictures; the oldest go first
  const kept = new Map();
  let data = { series: [], start: "", revision: 0, study: "" };
  let series = null, slice = 0, view = "brain", label = "", overlay = true, drawing = 0;
  const $ = (id) => document.getElementById(id);

  // ---- pictures ------------------------------------------------------------------------------------------
  function picture(address) {
    const found = kept.get(address);
    if (found) { kept.delete(address); kept.set(address, found); return found; }
    const image = new Image();
    image.src = address;
    const ready = image.decode().then(() => image, () => { kept.delete(address); return null; });
    kept.set(address, ready);
    if (kept.size > MAX_KEPT) kept.delete(kept.keys().next().value);
    return ready;
  }
  const root = () => `/studies/${data.study}/series/${series.uid}`;
  const sliceAddress = (number) => `${root()}/${view}/${number}.png`;
  const lookAddress = (number) => `${root()}/looks/${data.revision}/${label}/${number}.png`;
  const look = () => series?.looks[label];

  async function draw() {
    const canvas = $("canvas"), ticket = ++drawing;
    if (!series) { $("no-images").hidden = false; return; }
    $("no-images").hidden = true;
    tell();
    const [base, tint] = await Promise.all([picture(sliceAddress(slice)), overlay && look() ? picture(lookAddress(slice)) : null]);
    if (ticket !== drawing) return; // a later slice is wanted by now
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    if (base) {
      const fit = Math.min(canvas.width / base.width, canvas.height / base.height);
      const box = [(canvas.width - base.width * fit) / 2, (canvas.height - base.height * fit) / 2, base.width * fit, base.height * fit];
      pen.drawImage(base, ...box);
      if (tint) pen.drawImage(tint, ...box);
      if (overlay && look()?.z === slice) mark(pen, box, scale);
    }
    canvas.dataset.drawn = [series.number, slice, view, tint ? label : ""].join("/");
    for (const near of [1, -1, 2, -2, 3]) {
      if (slice + near >= 0 && slice + near < series.slices) {
        picture(sliceAddress(slice + near));
        if (overlay && look()) picture(lookAddress(slice + near));
      }
    }
  }
  function mark(pen, [left, top, width, height], scale) {
    const x = left + ((look().x + 0.5) / series.columns) * width, y = top + ((look().y + 0.5) / series.rows) * height;
    for (const [colour, thick] of [["rgb(0 0 0 / .7)", 5], ["#ffd9a0", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick * scale;
      pen.beginPath();
      pen.arc(x, y, 13 * scale, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
  function tell() {
    const where = look(), number = series.number ?? "";
    const corner = (name, text) => { document.querySelector(`[data-corner="${name}"]`).textContent = text; };
    corner("tl", `series ${number}\n${series.orientation}`);
    corner("tr", `${view} window`);
    corner("bl", `slice ${slice + 1} of ${series.slices}`);
    corner("br", overlay && where ? `${where.name}\nlooked hardest at slice ${where.z + 1}` : "");
    $("canvas").setAttribute("aria-label", `Series ${number}, slice ${slice + 1} of ${series.slices}, ${view} window${overlay && where ? `, with where the model looked for ${where.name}` : ""}`);
    $("slice").max = series.slices - 1;
    $("slice").value = slice;
    $("slice").setAttribute("aria-valuetext", `slice ${slice + 1} of ${series.slices}`);
    $("series").value = series.uid;
    $("overlay").disabled = !Object.keys(series.looks).length;
    $("overlay").setAttribute("aria-pressed", overlay && Boolean(where));
    document.querySelectorAll("[data-view]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === view));
  }

  // ---- what is shown -------------------------------------------------------------------------------------
  function go(to) { if (series) { slice = Math.min(Math.max(to, 0), series.slices - 1); draw(); } }
  function open(uid) {
    const part = series ? slice / series.slices : 0.5;
    series = data.series.find((one) => one.uid === uid) ?? data.series[0] ?? null;
    if (series && !look()) label = Object.keys(series.looks)[0] ?? label;
    go(Math.round(part * (series?.slices ?? 0)));
  }
  function show(wanted) {
    const home = data.series.find((one) => wanted in one.looks);
    if (!home) return false;
    label = wanted; series = home; overlay = true;
    go(look().z);
    return true;
  }
  function next() {
    const labels = [...document.querySelectorAll("[data-look]")].map((button) => button.dataset.look).filter((one) => data.series.some((s) => one in s.looks));
    if (labels.length) show(labels[(labels.indexOf(label) + 1) % labels.length]);
  }
  function read() {
    const text = $("study-head")?.dataset.viewer;
    if (!text || text === read.last) return;
    const isFirst = read.last === undefined;
    read.last = text;
    const before = series?.uid, revision = data.revision;
    data = JSON.parse(text);
    const chooser = $("series");
    chooser.replaceChildren(...data.series.map((one) => {
      const option = document.createElement("option");
      option.value = one.uid;
      option.textContent = `${one.number ?? "–"}: ${one.description}`;
      return option;
    }));
    chooser.disabled = !data.series.length;
    if ((isFirst || revision !== data.revision) && show(data.start)) return;
    series = data.series.find((one) => one.uid === before) ?? null;
    if (series) draw(); else { open(before); if (!series) draw(); }
  }

  // ---- by hand -------------------------------------------------------------------------------------------
  const KEYS = {
    ArrowUp: () => go(slice - 1), ArrowDown: () => go(slice + 1), PageUp: () => go(slice - 5), PageDown: () => go(slice + 5),
    Home: () => go(0), End: () => go(Infinity),
    1: () => window_("brain"), 2: () => window_("blood"), 3: () => window_("bone"),
    o: () => toggle(), n: () => next(), "[": () => beside(-1), "]": () => beside(1), w: () => location.assign("/"),
  };
  function window_(name) { view = name; draw(); }
  function toggle() { overlay = !overlay; draw(); }
  function beside(by) {
    const at = data.series.indexOf(series) + by;
    if (at >= 0 && at < data.series.length) open(data.series[at].uid);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest?.("input, select, textarea") || !(event.key in KEYS)) return;
    if (event.target.closest?.(".scroll") && /^(Arrow|Page|Home|End)/.test(event.key)) return;
    KEYS[event.key]();
    event.preventDefault();
  });
  addEventListener("DOMContentLoaded", () => {
    let rolled = 0, from = null;
    $("frame").addEventListener("wheel", (event) => {
      event.preventDefault();
      rolled += event.deltaY;
      const steps = Math.trunc(rolled / 40);
      if (steps) { rolled -= steps * 40; go(slice + Math.sign(steps) * Math.min(Math.abs(steps), 3)); }
    }, { passive: false });
    $("canvas").addEventListener("pointerdown", (event) => { from = { y: event.clientY, slice }; event.target.setPointerCapture(event.pointerId); });
    $("canvas").addEventListener("pointermove", (event) => { if (from) go(from.slice + Math.round((event.clientY - from.y) / 8)); });
    for (const end of ["pointerup", "pointercancel"]) $("canvas").addEventListener(end, () => { from = null; });
    $("slice").addEventListener("input", (event) => go(Number(event.target.value)));
    $("series").addEventListener("change", (event) => open(event.target.value));
    $("overlay").addEventListener("click", toggle);
    document.querySelectorAll("[data-view]").forEach((button) => button.addEventListener("click", () => window_(button.dataset.view)));
    new ResizeObserver(() => draw()).observe($("frame"));
    read();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-look]");
    if (button && show(button.dataset.look)) $("canvas").focus({ preventScroll: true });
  });
  document.addEventListener("htmx:oobAfterSwap", read);
})();
