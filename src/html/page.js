"use strict";
const heap = JSON.parse(document.getElementById("heap").textContent);
const at = id => document.getElementById(id);
const make = (name, cls, text) => {
  const element = document.createElement(name);
  if (cls) element.className = cls;
  if (text !== undefined) element.textContent = text;
  return element;
};
const count = n => n.toLocaleString("en-US");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const bytes = n => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0, value = Math.abs(n);
  while (value >= 1024 && unit < 4) { value /= 1024; unit++; }
  return `${n < 0 ? "−" : ""}${unit ? (Math.floor(value * 10) / 10).toFixed(1) : value} ${units[unit]}`;
};
const signed = (n, show) => n === 0 ? "0" : (n > 0 ? "+" : "−") + show(Math.abs(n));
const share = (part, whole) => whole ? `${(100 * part / whole).toFixed(1)} %` : "0 %";

// The page table: one entry a span. Kinds: 0 free and not resident, 1 free and resident, 2 divided, 3 run.
const PAGE = heap.heap.page_size, START = BigInt(heap.heap.start);
const spans = heap.spans, length = spans.length;
const first = new Float64Array(length + 1), kind = new Uint8Array(length);
const NAMES = ["Free, not resident", "Free, resident", "Divided", "Runs"];
const STATES = ["purged", "free", "divided", "multi"];
const KIND_COLOURS = ["--untouched", "--free-page", "--live-block", "--live-run"];
const sums = STATES.map(() => ({ pages: 0, entries: 0, live: 0, resident: 0 }));
// The last page that is, or was, in use.
const SHOWN = heap.summary.committed_bytes / PAGE;
spans.forEach((span, n) => {
  first[n] = span[0];
  kind[n] = span[2] === "divided" ? 2 : span[2] === "multi" ? 3 : span[6] > 0 ? 1 : 0;
  const sum = sums[kind[n]];
  sum.pages += span[1];
  sum.entries += span[4];
  sum.live += kind[n] === 2 ? span[4] * span[3] : kind[n] === 3 ? span[1] * PAGE : 0;
  sum.resident += span[6];
});
first[length] = heap.heap.pages;
const spanOf = page => {
  let low = 0, high = length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (first[middle] <= page) low = middle; else high = middle - 1;
  }
  return low;
};
const classes = heap.classes;
const components = heap.components;
const ownerOf = n => spans[n][7];
const rank = new Map(classes.map((c, n) => [c.block, classes.length > 1 ? n / (classes.length - 1) : 0.5]));

// Colours, as [red, green, blue].
let paint = {};
const rgb = text => [1, 3, 5].map(i => parseInt(text.slice(i, i + 2), 16));
const css = c => `rgb(${c[0] | 0},${c[1] | 0},${c[2] | 0})`;
const mix = (a, b, t) => a.map((v, i) => v + (b[i] - v) * t);
const CLASS_RAMP = ["#3d5bd9", "#2b8fd6", "#1fa99a", "#5fb04a", "#d6a521", "#e0702d", "#cf3f62"].map(rgb);
const COMPONENTS = ["#e0702d", "#2b8fd6", "#5fb04a", "#cf3f62", "#7c4ddb", "#1fa99a", "#d6a521", "#b0578f"].map(rgb);
// Beyond the first eight, the same again with more of the ground in them.
const componentColour = c => mix(COMPONENTS[c % 8], paint.card, Math.min(Math.floor(c / 8) * 0.3, 0.6));
const along = (ramp, t) => {
  const x = Math.min(Math.max(t, 0), 1) * (ramp.length - 1), n = Math.min(Math.floor(x), ramp.length - 2);
  return mix(ramp[n], ramp[n + 1], x - n);
};
const readPaint = () => {
  const style = getComputedStyle(document.documentElement);
  paint = {};
  for (const name of ["card", "ink", "untouched", "free-page", "live-block", "free-block", "live-run", "other", "hot", "warm", "cool"])
    paint[name] = rgb(style.getPropertyValue(`--${name}`).trim());
};
const classColour = block => along(CLASS_RAMP, rank.get(block) ?? 0);
const fullness = n => kind[n] === 3 ? 1 : kind[n] === 2 ? spans[n][4] / (spans[n][4] + spans[n][5]) : 0;
let mode = "state", focus = null;
const colourOf = n => {
  const span = spans[n], k = kind[n];
  let colour;
  if (mode === "resident") {
    const part = span[6] / (span[1] * PAGE);
    colour = part > 0 ? mix(mix(paint.untouched, paint["live-run"], 0.3), paint["live-run"], part) : paint.untouched;
  } else if (k < 2) colour = k && mode === "state" ? paint["free-page"] : k ? mix(paint.untouched, paint["free-page"], 0.35) : paint.untouched;
  else if (mode === "component") colour = ownerOf(n) === null ? mix(paint.other, paint.card, 0.4) : componentColour(ownerOf(n));
  else if (mode === "fullness") colour = along([paint.hot, paint.warm, paint.cool], fullness(n));
  else if (k === 3) colour = mode === "class" ? mix(paint["live-run"], paint.card, 0.35) : paint["live-run"];
  else if (mode === "class") colour = classColour(span[3]);
  else colour = mix(paint["free-block"], paint["live-block"], fullness(n));
  return focus && !focus(n) ? mix(colour, paint.card, 0.85) : colour;
};

// The map. A level of the zoom has so many pages to a cell, and cells of a size.
const levels = [];
for (let pages = 1 << 16; pages > 1; pages >>= 1) levels.push({ pages, size: 5 });
for (const size of [5, 6, 7, 8, 10, 12, 15, 20, 28, 40, 56]) levels.push({ pages: 1, size });
const canvas = at("map"), view = at("view"), context = canvas.getContext("2d");
let level = 0, columns = 1, width = 0, hovered = -1, chosen = -1;
const TALLEST = 430;
const rows = l => Math.ceil(Math.ceil(SHOWN / l.pages) / Math.max(1, Math.floor(view.clientWidth / l.size)));
const fit = () => {
  level = 0;
  while (level + 1 < levels.length && rows(levels[level + 1]) * levels[level + 1].size <= TALLEST) level++;
};
const layOut = () => {
  const { pages, size } = levels[level];
  width = view.clientWidth;
  columns = Math.max(1, Math.floor(width / size));
  const height = rows(levels[level]) * size, ratio = window.devicePixelRatio || 1;
  const tall = Math.max(Math.min(TALLEST, height), size);
  canvas.width = width * ratio; canvas.height = tall * ratio;
  canvas.style.width = `${width}px`; canvas.style.height = `${tall}px`;
  view.style.height = `${tall}px`;
  at("spacer").style.height = `${Math.max(0, height - tall)}px`;
  at("scale").textContent = pages === 1 ? `a cell is a page of ${bytes(PAGE)}` : `a cell is ${count(pages)} pages`;
  draw();
};
const draw = () => {
  const { pages, size } = levels[level], ratio = window.devicePixelRatio || 1, edge = size > 12 ? 2 : 1;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, view.clientHeight);
  const top = view.scrollTop, firstRow = Math.floor(top / size), lastRow = Math.ceil((top + view.clientHeight) / size);
  const cells = Math.ceil(SHOWN / pages);
  let cell = firstRow * columns;
  if (cell >= cells) return;
  let n = spanOf(cell * pages), drawn = 0;
  for (; cell < Math.min(cells, lastRow * columns); cell++) {
    const from = cell * pages, to = Math.min(from + pages, SHOWN);
    while (first[n + 1] <= from) n++;
    let colour, joined = false;
    if (first[n + 1] >= to) {
      colour = colourOf(n);
      joined = kind[n] === 3 && first[n + 1] > to && (cell + 1) % columns !== 0;
    } else {
      // The mean of what is folded into the cell.
      colour = [0, 0, 0];
      for (let m = n; m < length && first[m] < to; m++) {
        const weight = (Math.min(first[m + 1], to) - Math.max(first[m], from)) / (to - from), one = colourOf(m);
        for (let i = 0; i < 3; i++) colour[i] += one[i] * weight;
      }
    }
    context.fillStyle = css(colour);
    const x = (cell % columns) * size, y = Math.floor(cell / columns) * size - top;
    context.fillRect(x, y, joined ? size : size - edge, size - edge);
    if (chosen >= from && chosen < to) {
      context.strokeStyle = css(paint.ink); context.lineWidth = 2;
      context.strokeRect(x - .5, y - .5, size - edge + 1, size - edge + 1);
    }
    drawn++;
  }
  document.documentElement.dataset.drawn = drawn;
};
const pageAt = event => {
  const box = canvas.getBoundingClientRect(), { pages, size } = levels[level];
  const column = Math.floor((event.clientX - box.left) / size), row = Math.floor((event.clientY - box.top + view.scrollTop) / size);
  const page = (row * columns + column) * pages;
  return column >= 0 && column < columns && page < SHOWN ? page : -1;
};
const zoom = (by, event) => {
  const anchor = event ? pageAt(event) : chosen;
  const offset = event ? event.clientY - canvas.getBoundingClientRect().top : view.clientHeight / 2;
  level = Math.min(Math.max(level + by, 0), levels.length - 1);
  layOut();
  if (anchor >= 0) view.scrollTop = Math.floor(anchor / levels[level].pages / columns) * levels[level].size - offset;
  draw();
};

// What is said of a page.
const details = page => {
  const n = spanOf(page), span = spans[n], [from, pages, , block, live, free, resident] = span, k = kind[n];
  const list = [["Address", `0x${(START + BigInt(page) * BigInt(PAGE)).toString(16)}`]];
  if (ownerOf(n) !== null) list.push(["Component", components[ownerOf(n)].name]);
  if (k === 2) {
    list.push(["Block", bytes(block)], ["Live blocks", `${count(live / pages)} of ${count((live + free) / pages)}`],
      ["Fullness", share(live, live + free)], ["Resident", pages === 1 ? bytes(resident) : `${bytes(resident)} in ${plural(pages, "page")}`]);
  } else if (k === 3) list.push(["Run", plural(pages, "page")], ["Handed out", bytes(pages * PAGE)], ["Resident", `${bytes(resident)} (${share(resident, pages * PAGE)})`]);
  else list.push(["Free with it", plural(Math.min(pages, SHOWN - from), "page")], ["Resident", bytes(resident)]);
  return { title: `Page ${count(page)}: ${["free, not resident", "free, resident", "Divided", "part of a run"][k]}`, state: STATES[k], list };
};
const choose = page => {
  chosen = page;
  const box = at("chosen");
  box.textContent = "";
  if (page < 0) { box.append(make("span", "quiet", "Click a cell to keep what is said of it here.")); return; }
  const { title, state, list } = details(page), names = make("dl");
  Object.assign(box.dataset, { page, state });
  for (const [name, value] of list) names.append(make("dt", "", name), make("dd", "", value));
  box.append(make("h2", "", title), names);
};
const tell = event => {
  const page = pageAt(event), tip = at("tip");
  if (page !== hovered && page >= 0) {
    const { pages } = levels[level], last = Math.min(page + pages, SHOWN) - 1, there = {}, owned = {};
    tip.textContent = "";
    if (pages > 1 && spanOf(page) !== spanOf(last)) {
      for (let n = spanOf(page); n < length && first[n] <= last; n++) {
        const inside = Math.min(first[n + 1], last + 1) - Math.max(first[n], page);
        there[kind[n]] = (there[kind[n]] || 0) + inside;
        if (ownerOf(n) !== null) owned[ownerOf(n)] = (owned[ownerOf(n)] || 0) + inside;
      }
      tip.append(make("b", "", `Pages ${count(page)} to ${count(last)}`));
      for (const k in there) tip.append(make("div", "", `${NAMES[k]}: ${plural(there[k], "page")}`));
      for (const c in owned) tip.append(make("div", "", `Component ${components[c].name}: ${plural(owned[c], "page")}`));
    } else {
      const { title, list } = details(page);
      tip.append(make("b", "", title));
      for (const [name, value] of list) tip.append(make("div", "", `${name}: ${value}`));
    }
  }
  hovered = page;
  tip.style.opacity = page < 0 ? 0 : 1;
  const x = event.clientX + 16, y = event.clientY + 16;
  tip.style.left = `${Math.min(x, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${y + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : y}px`;
};

// The resident size and its parts.
const PARTS = [["live_block_bytes", "Live blocks", "--live-block"], ["live_run_bytes", "Live runs", "--live-run"],
  ["cached_block_bytes", "In thread caches", "--cached"], ["free_block_bytes", "Free blocks", "--free-block"],
  ["tail_bytes", "Page tails", "--tail"], ["free_page_bytes", "Free pages", "--free-page"], ["guarded_bytes", "Guarded blocks", "--guarded"],
  ["table_bytes", "Page table", "--table"], ["cache_bytes", "Thread caches", "--cache"], ["other_bytes", "All else", "--other"]];
const changeOf = (now, then, show) => {
  const change = now - then;
  return make("em", change > 0 ? "up" : change < 0 ? "down" : "quiet", signed(change, show));
};
const showParts = () => {
  const whole = heap.resident.process_bytes, before = heap.before && heap.before.resident;
  at("whole").textContent = bytes(whole);
  if (before) at("whole-change").append(changeOf(whole, before.process_bytes, bytes));
  for (const [key, name, colour] of PARTS) {
    const size = heap.resident[key], segment = make("i"), line = make("div", "part"), dot = make("i", "dot");
    segment.style.cssText = `flex:${size} 0 0;background:var(${colour})`;
    segment.title = `${name}: ${bytes(size)}`;
    dot.style.background = `var(${colour})`;
    line.dataset.part = key; line.dataset.bytes = size;
    line.append(dot, make("b", "", name), make("span", "", `${bytes(size)} · ${share(size, whole)}`));
    if (before) line.append(changeOf(size, before[key], bytes));
    if (size) at("bar").append(segment);
    at("parts").append(line);
    const others = on => [...at("bar").children].forEach(other => other.classList.toggle("dim", on && other !== segment));
    for (const element of [segment, line]) {
      element.onmouseenter = () => others(true);
      element.onmouseleave = () => others(false);
    }
  }
};

const showLegend = () => {
  const legend = at("legend");
  legend.textContent = "";
  const ramp = (colours, from, to) => {
    const strip = make("div", "ramp"), ends = make("div", "ends");
    strip.style.background = `linear-gradient(90deg,${colours.map(css).join(",")})`;
    ends.append(make("span", "", from), make("span", "", to));
    legend.append(strip, ends);
  };
  if (mode === "class" && classes.length) ramp(CLASS_RAMP, bytes(classes[0].block), bytes(classes[classes.length - 1].block));
  if (mode === "fullness") ramp([paint.hot, paint.warm, paint.cool], "few live blocks", "full");
  if (mode === "resident") ramp([mix(paint.untouched, paint["live-run"], 0.3), paint["live-run"]], "little resident", "all");
  if (mode === "component") {
    const owners = new Map([[null, 0], ...components.map((_, c) => [c, 0])]);
    for (let n = 0; n < length; n++) if (kind[n] > 1) owners.set(ownerOf(n), owners.get(ownerOf(n)) + spans[n][1]);
    for (const [owner, pages] of owners) {
      const line = make("div", "part"), dot = make("i", "dot"), text = make("div");
      dot.style.background = css(owner === null ? mix(paint.other, paint.card, 0.4) : componentColour(owner));
      line.dataset.owner = owner === null ? "" : owner; line.dataset.owned = pages;
      text.append(make("b", "", owner === null ? "No component" : components[owner].name), make("span", "", `${plural(pages, "page")} · ${bytes(pages * PAGE)}`));
      line.append(dot, text);
      line.onmouseenter = () => { focus = n => kind[n] > 1 && ownerOf(n) === owner; draw(); };
      line.onmouseleave = () => { focus = null; draw(); };
      legend.append(line);
    }
    return;
  }
  for (const k of [2, 3, 1, 0]) {
    const sum = sums[k], line = make("div", "part"), dot = make("i", "dot"), text = make("div");
    const pages = k ? sum.pages : sum.pages - (heap.heap.pages - SHOWN);
    dot.style.background = `var(${KIND_COLOURS[k]})`;
    Object.assign(line.dataset, { state: STATES[k], pages, resident: sum.resident, live: sum.live });
    text.append(make("b", "", NAMES[k]), make("span", "", `${plural(pages, "page")} · ${bytes(pages * PAGE)}`));
    if (k === 2) text.append(make("span", "", `${plural(sum.entries, "block")} taken · ${bytes(sum.live)}`));
    if (k === 3) text.append(make("span", "", plural(sum.entries, "run")));
    if (k) text.append(make("span", "", `${bytes(sum.resident)} resident`));
    line.append(dot, text);
    line.onmouseenter = () => { focus = n => kind[n] === k; draw(); };
    line.onmouseleave = () => { focus = null; draw(); };
    legend.append(line);
  }
};

let order = ["block", 1];
const showClasses = () => {
  const list = classes.map(c => ({ ...c, name: bytes(c.block), asked_bytes: c.least_asked_bytes }));
  const { runs } = heap;
  if (runs.runs) list.push({ name: "Runs", block: Infinity, pages: runs.pages, live_blocks: runs.runs, cached_blocks: 0, free_blocks: 0, live_bytes: runs.live_bytes, asked_bytes: runs.asked_bytes, resident_bytes: runs.resident_bytes });
  list.sort((a, b) => (a[order[0]] - b[order[0]]) * order[1]);
  at("rows").textContent = "";
  for (const c of list) {
    const row = make("tr"), name = make("td"), dot = make("i", "dot"), use = make("td", "use"), strip = make("div");
    const run = c.block === Infinity, all = c.live_blocks + c.cached_blocks + c.free_blocks;
    dot.style.background = run ? "var(--live-run)" : css(classColour(c.block));
    name.append(dot, c.name);
    for (const [part, colour] of [[c.live_blocks, run ? "--live-run" : "--live-block"], [c.cached_blocks, "--cached"], [c.free_blocks, "--free-block"]]) {
      const piece = make("i");
      piece.style.cssText = `width:${100 * part / all}%;background:var(${colour})`;
      strip.append(piece);
    }
    use.append(strip);
    Object.assign(row.dataset, { block: run ? 0 : c.block, pages: c.pages, live: c.live_blocks, asked: c.asked_bytes, resident: c.resident_bytes });
    const asked = make("td", run ? "" : "least", bytes(c.asked_bytes));
    asked.title = run ? "All runs together" : "A smaller block would have served less than that";
    row.append(name, ...[count(c.pages), count(c.live_blocks), bytes(c.live_bytes)].map(text => make("td", "", text)), asked,
      ...[count(c.cached_blocks), count(c.free_blocks), bytes(c.resident_bytes)].map(text => make("td", "", text)), use);
    row.onmouseenter = () => { focus = n => run ? kind[n] === 3 : kind[n] === 2 && spans[n][3] === c.block; draw(); };
    row.onmouseleave = () => { focus = null; draw(); };
    at("rows").append(row);
  }
  for (const head of document.querySelectorAll("#classes th[data-key]"))
    head.toggleAttribute("aria-sort", head.dataset.key === order[0]);
};

const showComponents = () => {
  at("parts-of-the-program").hidden = !components.length;
  if (!components.length) at("by-component").remove();
  components.forEach((c, index) => {
    const row = make("tr"), name = make("td"), dot = make("i", "dot"), use = make("td", "use"), strip = make("div"), piece = make("i");
    const part = c.limit_bytes === null ? 0 : Math.min(1, c.held_bytes / Math.max(1, c.limit_bytes));
    piece.style.cssText = `width:${100 * part}%;background:var(--live-block)`;
    strip.append(piece);
    use.append(strip);
    dot.style.background = css(componentColour(index));
    name.append(dot, c.name);
    row.dataset.live = c.live_bytes;
    row.onmouseenter = () => { focus = n => ownerOf(n) === index; draw(); };
    row.onmouseleave = () => { focus = null; draw(); };
    row.append(name, ...[bytes(c.live_bytes), bytes(c.cached_bytes), bytes(c.peak_bytes), count(c.divided_pages + c.multi_pages), c.limit_bytes === null ? "none" : bytes(c.limit_bytes)].map(text => make("td", "", text)), use);
    at("components").append(row);
  });
};

const showChanges = () => {
  const { before } = heap;
  if (!before) return;
  const keys = ["live_blocks", "live_bytes", "pages", "resident_bytes"], byBlock = new Map();
  const none = { live_blocks: 0, live_bytes: 0, pages: 0, resident_bytes: 0 };
  const put = (block, side, c) => byBlock.set(block, { ...(byBlock.get(block) || { then: none, now: none }), [side]: c });
  before.classes.forEach(c => put(c.block, "then", c));
  classes.forEach(c => put(c.block, "now", c));
  put(0, "then", { ...before.runs, live_blocks: before.runs.runs });
  put(0, "now", { ...heap.runs, live_blocks: heap.runs.runs });
  const list = [...byBlock].map(([block, { then, now }]) => ({ block, ...Object.fromEntries(keys.map(k => [k, now[k] - then[k]])) }))
    .filter(c => keys.some(k => c[k])).sort((a, b) => b.live_bytes - a.live_bytes || a.block - b.block);
  const most = Math.max(1, ...list.map(c => Math.abs(c.live_bytes)));
  for (const c of list) {
    const row = make("tr"), name = make("td"), dot = make("i", "dot"), use = make("td", "use change"), strip = make("div"), piece = make("i");
    dot.style.background = c.block ? css(classColour(c.block)) : "var(--live-run)";
    name.append(dot, c.block ? bytes(c.block) : "Runs");
    const size = 50 * Math.abs(c.live_bytes) / most;
    if (c.live_bytes) piece.style.cssText = `width:${size}%;${c.live_bytes > 0 ? "left" : "right"}:50%;background:var(${c.live_bytes > 0 ? "--hot" : "--free-page"})`;
    strip.append(piece); use.append(strip);
    Object.assign(row.dataset, { block: c.block, live: c.live_blocks, bytes: c.live_bytes });
    row.append(name, ...[signed(c.live_blocks, count), signed(c.live_bytes, bytes), signed(c.pages, count), signed(c.resident_bytes, bytes)].map(text => make("td", "", text)), use);
    at("grown").append(row);
  }
  if (!list.length) at("grown").append(make("tr")).append(make("td", "quiet", "Nothing has changed."));
  at("changes").hidden = false;
};

const setTheme = theme => {
  document.documentElement.dataset.theme = theme;
  readPaint();
  showLegend();
  draw();
};
const setMode = name => {
  mode = name;
  for (const button of at("modes").children) button.setAttribute("aria-pressed", button.dataset.mode === name);
  showLegend();
  draw();
};

// `#page=7&mode=class&theme=dark` chooses what is shown first.
const wanted = new URLSearchParams(location.hash.slice(1));
at("facts").textContent = `${plural(SHOWN, "page")} of ${bytes(PAGE)} committed, ${bytes(heap.summary.committed_bytes)} of ${bytes(heap.summary.reserved_bytes)} reserved · ${bytes(heap.summary.live_bytes)} handed out, at least ${bytes(heap.summary.least_asked_bytes)} asked for`;
at("rest").textContent = heap.heap.pages > SHOWN ? `${plural(heap.heap.pages - SHOWN, "page")} above these are reserved and were never used.` : "";
readPaint();
showParts();
fit();
choose(/^\d+$/.test(wanted.get("page")) ? Math.min(Number(wanted.get("page")), heap.heap.pages - 1) : -1);
setTheme(wanted.get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
setMode(wanted.get("mode") || "state");
showClasses();
showComponents();
showChanges();
layOut();
view.onscroll = draw;
canvas.onmousemove = tell;
canvas.onmouseleave = () => { hovered = -1; at("tip").style.opacity = 0; };
canvas.onclick = event => { choose(pageAt(event)); draw(); };
view.addEventListener("wheel", event => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1 : -1, event);
}, { passive: false });
view.onkeydown = event => { if (event.key === "+" || event.key === "=") zoom(1); if (event.key === "-") zoom(-1); };
at("in").onclick = () => zoom(1);
at("out").onclick = () => zoom(-1);
at("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
at("modes").onclick = event => { if (event.target.dataset.mode) setMode(event.target.dataset.mode); };
document.querySelectorAll("#classes th[data-key]").forEach(head => head.onclick = () => {
  order = [head.dataset.key, head.dataset.key === "block" ? 1 : -1];
  showClasses();
});
addEventListener("resize", layOut);
Object.assign(document.documentElement.dataset, { ready: "1", pages: heap.heap.pages, spans: length });
