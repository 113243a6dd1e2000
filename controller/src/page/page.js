"use strict";
// Asks the controller every two seconds for what is new, and draws it. Whatever comes from there is text, and becomes nothing else: every node
// of the page is made by `make`, and the page's policy forbids anything else. The token is kept for this tab only.

const STATES = ["warm", "parked", "dedup", "bases", "rest"];
const SAMPLES_MAX = 720;
const EVENTS_MAX = 300;
const ASK_EVERY_MS = 2000;
const KEY = "medes-token";

const byId = (id) => document.getElementById(id);
const known = { event: "0", sample: 0, samples: [], events: [], sandboxes: [], shown: null, still: false };
let timer = 0;

// ---- making nodes

function make(name, attributes, ...children) {
  const svg = ["svg", "rect", "path", "line", "text", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) node.setAttribute(key, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

// Rows of a table by what they are about, so that nothing loses the focus when numbers change.
function table(id, headings, rows, caption) {
  const place = byId(id);
  if (!place.tHead) {
    const cells = headings.map(([title, kind]) => make("th", { scope: "col", class: kind ?? "" }, title));
    place.append(make("thead", null, make("tr", null, ...cells)), make("tbody"));
    if (caption) place.prepend(make("caption", null, caption));
  }
  const body = place.tBodies[0];
  const before = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const after = rows.map(([key, cells]) => {
    const row = before.get(key) ?? make("tr", { "data-key": key });
    cells.forEach((cell, at) => {
      const old = row.cells[at] ?? row.appendChild(make(at ? "td" : "th", at ? { class: headings[at][1] ?? "" } : { scope: "row" }));
      if (cell instanceof Node) {
        if (!old.firstChild) old.append(cell);
      } else if (old.textContent !== String(cell)) {
        old.textContent = cell;
      }
    });
    return row;
  });
  if (after.length !== body.rows.length || after.some((row, at) => body.rows[at] !== row)) {
    const focused = document.activeElement;
    body.replaceChildren(...after);
    if (body.contains(focused)) focused.focus({ preventScroll: true });
  }
}

// ---- numbers as people read them

function bytes(count) {
  if (count < 1024) return `${count} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let at = -1;
  do { count /= 1024; at += 1; } while (count >= 1023.95 && at < units.length - 1);
  return `${count.toFixed(count < 99.95 ? 1 : 0)} ${units[at]}`;
}

function took(micros) {
  if (micros < 1000) return `${(micros / 1000).toFixed(2)} ms`;
  if (micros < 999500) return `${(micros / 1000).toFixed(micros < 99950 ? 1 : 0)} ms`;
  return `${(micros / 1e6).toFixed(2)} s`;
}

function age(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, "0")}s`;
  return `${Math.floor(s / 3600)}h${String(Math.floor(s / 60) % 60).padStart(2, "0")}m`;
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
const dash = (count) => (count ? bytes(count) : "–");

// ---- events as sentences: the same as `medes trace` prints

function option(one) {
  const estimates = [];
  if (one.cost_micros) estimates.push(`~${took(one.cost_micros)}`);
  if (one.bytes !== undefined) estimates.push(bytes(one.bytes));
  return `${one.name}: ${one.reason}${estimates.length ? ` (${estimates.join(", ")})` : ""}`;
}

const phases = (all) => all.map((phase) => `${phase.name} ${took(phase.micros)}`).join(", ");
const SAY = {
  state: (e) => `${e.from ?? "new"} → ${e.to ?? "gone"} (${e.cause.replaceAll("_", " ")})`,
  idle: (e) => `no work for ${took(e.idle_micros)}, ${bytes(e.private_bytes)} private`,
  ready: (e) => [`${e.start} in ${took(e.took_micros)}`, phases(e.phases)].filter(Boolean).join("; "),
  dedup: (e) => `${bytes(e.bytes_in)} → ${bytes(e.bytes_out)}${e.bytes_in ? ` (${((e.bytes_out / e.bytes_in) * 100).toFixed(1)} %)` : ""}; ${phases(e.phases)}`,
  purge: (e) => `ends: ${e.reason}`,
  base: (e) => `${e.snapshot} ${e.made ? "made" : "dropped"}, ${bytes(e.bytes)}`,
  error: (e) => `${e.doing}: ${e.message}`,
  node: (e) => `${e.change}, ${e.sandboxes} sandboxes`,
  asked: (e) => `somebody asked for ${e.operation}`,
};

function say(event) {
  if (event.chosen) return [option(event.chosen), ...event.rejected.map((one) => `not ${option(one)}`)].join("; ");
  return (SAY[event.kind] ?? (() => ""))(event);
}

function item(event) {
  const about = ["node", "sandbox", "function"].map((name) => event[name]).filter(Boolean).join(" ");
  const when = make("time", { datetime: new Date(event.unix_micros / 1000).toISOString() }, clock(event.unix_micros / 1000));
  const kind = make("span", { class: "kind" }, event.kind);
  return make("li", { class: event.kind === "error" ? "error" : "" }, when, kind, make("span", { class: "about" }, about), say(event));
}

// ---- the parts of the page

function key(name, kind) {
  return make("span", { class: "key" }, make("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, make("rect", { width: 10, height: 10, class: kind })), name);
}

function chart(samples) {
  // One unit is one pixel: letters are as large on a phone.
  const [width, height, left, bottom] = [Math.max(byId("chart").clientWidth, 280), 240, 64, 20];
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Nothing is known yet" });
  byId("chart").replaceChildren(svg);
  if (!samples.length) return;
  const [first, last] = [samples[0].unix_ms, samples.at(-1).unix_ms];
  const sum = (sample) => STATES.reduce((all, state) => all + sample[state], 0);
  const top = Math.max(...samples.map(sum), 1) * 1.05;
  const x = (ms) => left + ((ms - first) / Math.max(last - first, 1)) * (width - left - 4);
  const y = (count) => height - bottom - (count / top) * (height - bottom - 8);
  const under = samples.map(() => 0);
  for (const state of STATES) {
    const lower = samples.map((sample, at) => [x(sample.unix_ms), y(under[at])]);
    const upper = samples.map((sample, at) => [x(sample.unix_ms), y((under[at] += sample[state]))]);
    if (samples.length === 1) [lower, upper].forEach((line) => line.push([width - 4, line[0][1]]));
    const points = [...upper, ...lower.reverse()].map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`);
    svg.append(make("path", { d: `M${points.join("L")}Z`, class: state }, make("title", null, state)));
  }
  for (const part of [0, 0.5, 1]) {
    const at = y((top / 1.05) * part);
    svg.append(make("line", { x1: left, x2: width, y1: at, y2: at, class: "grid" }));
    svg.append(make("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, bytes(Math.round((top / 1.05) * part))));
  }
  svg.append(make("text", { x: left, y: height - 4 }, clock(first)));
  svg.append(make("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, clock(last)));
  const now = samples.at(-1);
  const told = STATES.map((state) => `${state} ${bytes(now[state])}`).join(", ");
  svg.setAttribute("aria-label", `Memory from ${clock(first)} to ${clock(last)}. Now: ${told}.`);
  byId("legend").replaceChildren(...STATES.map((state) => key(`${state} ${bytes(now[state])}`, state)));
}

function numbers(cluster) {
  const now = known.samples.at(-1);
  const states = {};
  for (const one of cluster.sandboxes) states[one.state] = (states[one.state] ?? 0) + 1;
  const told = Object.entries(states).map(([state, count]) => `${count} ${state}`).join(", ");
  const pairs = [
    ["Nodes", cluster.nodes.length],
    ["Functions", cluster.functions.length],
    ["Sandboxes", cluster.sandboxes_in_all + (told ? ` (${told})` : "")],
    ["Memory used", now ? `${bytes(now.used)} of ${dash(now.cap)}` : "–"],
    ["Requests", cluster.functions.reduce((all, one) => all + one.requests, 0)],
    ["Registry", `${cluster.registry_entries} entries, ${bytes(cluster.registry_bytes)}`],
  ];
  byId("numbers").replaceChildren(...pairs.map(([name, value]) => make("div", null, make("dt", null, name), make("dd", null, value))));
}

function tables(cluster) {
  const n = "number";
  table("kinds", [["Start"], ["Answers", n], ["p50", n], ["p90", n], ["p99", n]], cluster.starts.map((one) => {
    const times = [one.p50_micros, one.p90_micros, one.p99_micros].map((micros) => (one.recent ? took(micros) : "–"));
    return [one.start, [one.start, one.answers, ...times]];
  }));
  table("node-table", [["Node"], ["Standing"], ["Used", n], ["May use", n], ["Bases", n], ["Images", n], ["Agent", n], ["Sandboxes", n], ["Requests", n], ["Heard", n], ["Lacks", "text"]],
    cluster.nodes.map((one) => [one.node, [one.node, one.connected ? one.standing : "away", bytes(one.used_bytes), dash(one.cap_bytes), dash(one.base_bytes),
      dash(one.image_bytes), dash(one.agent_bytes), one.sandboxes, one.requests, age(one.silent_ms), one.lacks.join("; ")]]));
  table("function-table", [["Function"], ["Tenant"], ["Warm", n], ["Dedup", n], ["Bases", n], ["Requests", n], ["Cold", n], ["Restores", n], ["Clones", n]],
    cluster.functions.map((one) => [one.function, [one.function, one.tenant, one.warm, one.dedup, one.bases, one.requests, one.cold_starts, one.restores, one.clones]]));
  sandboxes();
  const rows = known.samples.slice(-30).reverse();
  table("samples", [["Time"], ...STATES.map((state) => [state, n]), ["Used", n]],
    rows.map((one) => [String(one.unix_ms), [clock(one.unix_ms), ...STATES.map((state) => bytes(one[state])), bytes(one.used)]]));
}

function sandboxes() {
  const wanted = byId("filter").value.toLowerCase();
  const fits = (one) => [one.sandbox, one.function, one.node, one.state].some((text) => text.toLowerCase().includes(wanted));
  const rows = known.sandboxes.filter(fits);
  table("sandbox-table", [["Sandbox"], ["Function"], ["Node"], ["State"], ["For", "number"], ["Private", "number"], ["Stored", "number"], ["Requests", "number"], ["Cannot be dumped", "text"]],
    rows.map((one) => [one.sandbox, [open(one.sandbox), one.function, one.node, one.state, age(one.state_age_ms), dash(one.private_bytes), dash(one.stored_bytes), one.requests, one.undumpable ?? ""]]));
  byId("more").textContent = rows.length < known.sandboxes_in_all ? `${rows.length} of ${known.sandboxes_in_all} are shown.` : "";
}

function open(sandbox) {
  const button = make("button", { type: "button", "aria-haspopup": "dialog", "aria-label": `Look at ${sandbox}` }, sandbox);
  button.addEventListener("click", () => look(sandbox));
  return button;
}

function events(fresh) {
  known.events = [...fresh.reverse(), ...known.events].slice(0, EVENTS_MAX);
  if (!known.still) byId("events").replaceChildren(...known.events.map(item));
}

// ---- one sandbox

function strip(mapping, names) {
  const cells = mapping.cells;
  const svg = make("svg", { viewBox: `0 0 ${Math.max(cells.length, 1)} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (let at = 0; at < cells.length; ) {
    let end = at;
    while (end < cells.length && cells[end] === cells[at]) end += 1;
    if (cells[at] !== "0") svg.append(make("rect", { x: at, width: end - at, height: 1, class: `class-${names[Number(cells[at]) - 1]}` }));
    at = end;
  }
  const name = mapping.name || "anonymous";
  return make("div", { class: "strip" }, make("span", { class: "note" }, `${mapping.pid} ${mapping.start} ${name}, ${bytes(mapping.pages * 4096)}`), svg);
}

function heat(one) {
  const place = byId("heat");
  if (!one.heat) return place.replaceChildren(make("p", { class: "note" }, `There is no map: ${one.no_heat}`));
  const names = one.heat.pages.map(([name]) => name);
  const keys = one.heat.pages.filter(([, pages]) => pages).map(([name, pages]) => key(`${name} ${bytes(pages * 4096)}`, `class-${name}`));
  const told = `As ${one.heat.source} sees it. A cell is ${one.heat.pages_per_cell} of its pages, and as warm as the warmest of them.`;
  const rest = one.heat.left_out ? [make("p", { class: "note" }, `${one.heat.left_out} smaller mappings are not drawn.`)] : [];
  place.replaceChildren(make("p", { class: "note" }, told), make("p", null, ...keys), ...one.heat.mappings.map((mapping) => strip(mapping, names)), ...rest);
}

function why(event) {
  if (!event.chosen) return [make("li", null, say(event))];
  const facts = event.facts.map((fact) => `${fact.name.replaceAll("_", " ")} ${fact.value}`).join(", ");
  const lines = [`chosen: ${option(event.chosen)}`, ...event.rejected.map((one) => `not ${option(one)}`), facts && `looked at: ${facts}`];
  return lines.filter(Boolean).map((line) => make("li", null, line));
}

async function look(sandbox) {
  known.shown = sandbox;
  byId("one-title").textContent = sandbox;
  const one = await ask(`data/sandbox/${encodeURIComponent(sandbox)}`);
  if (!one || known.shown !== sandbox) return;
  const now = one.now;
  byId("one-now").textContent = now
    ? `Of ${now.function} on ${now.node}: ${now.state} for ${age(now.state_age_ms)}, ${bytes(now.private_bytes)} private, ${bytes(now.stored_bytes)} stored. ${one.last_phases.length ? `Last: ${phases(one.last_phases)}.` : ""}`
    : "It is gone.";
  heat(one);
  const reasons = [one.decision, one.review].filter(Boolean).flatMap(why);
  byId("why").replaceChildren(...(reasons.length ? reasons : [make("li", null, "No decision about it is remembered.")]));
  byId("history").replaceChildren(...one.history.map(item));
  if (!byId("one").open) byId("one").showModal();
}

// ---- asking

function status(text, bad) {
  const place = byId("status");
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("bad", Boolean(bad));
}

function door(why) {
  clearTimeout(timer);
  sessionStorage.removeItem(KEY);
  if (byId("one").open) byId("one").close();
  byId("main").hidden = byId("parts").hidden = true;
  byId("leave").hidden = true;
  byId("door").hidden = false;
  byId("denied").textContent = why ?? "";
  status("Not let in yet");
  byId("token").focus();
}

async function ask(path) {
  const token = sessionStorage.getItem(KEY);
  try {
    const answer = await fetch(path, { headers: token ? { authorization: `Bearer ${token}` } : {}, credentials: "omit", cache: "no-store" });
    const told = await answer.json();
    if (answer.ok) return told;
    if (answer.status === 401 || answer.status === 403) door(told.error);
    else status(told.error, true);
  } catch {
    status("The controller does not answer", true);
  }
  return null;
}

async function refresh() {
  clearTimeout(timer);
  const cluster = await ask(`data/cluster?event=${known.event}&sample=${known.sample}`);
  if (cluster) {
    byId("door").hidden = true;
    byId("main").hidden = byId("parts").hidden = false;
    byId("leave").hidden = !sessionStorage.getItem(KEY);
    known.event = cluster.last_event;
    known.samples = [...known.samples, ...cluster.memory].slice(-SAMPLES_MAX);
    known.sample = known.samples.at(-1)?.unix_ms ?? 0;
    known.sandboxes = cluster.sandboxes;
    known.sandboxes_in_all = cluster.sandboxes_in_all;
    numbers(cluster);
    chart(known.samples);
    tables(cluster);
    if (cluster.events.length) events(cluster.events);
    // Told every two seconds, but not read out: only trouble is.
    byId("as-of").textContent = `As of ${clock(Date.now())}`;
    status("");
  }
  if (byId("door").hidden) timer = setTimeout(refresh, ASK_EVERY_MS);
}

async function begin() {
  byId("door").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, byId("token").value.trim());
    byId("token").value = "";
    byId("denied").textContent = "";
    refresh();
  });
  byId("leave").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });
  addEventListener("resize", () => chart(known.samples));
  byId("filter").addEventListener("input", sandboxes);
  byId("again").addEventListener("click", () => look(known.shown));
  byId("pause").addEventListener("click", () => {
    known.still = !known.still;
    byId("pause").setAttribute("aria-pressed", String(known.still));
    if (!known.still) events([]);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (event.key === "/" && !typing && !byId("one").open && !byId("main").hidden) {
      event.preventDefault();
      byId("filter").focus();
    }
  });
  const needed = await ask("door");
  if (needed?.asks && !sessionStorage.getItem(KEY)) door();
  else refresh();
}

begin();
