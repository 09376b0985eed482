
"use strict";

// The document comes each second. What it says goes into text nodes only, never into markup.

const HISTORY = 300;
const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const COLOURS = { ok: "#14935a", warning: "#d29922", error: "#d9483b", lost: "#8a8f98" };

const at = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const count = (value) => (value >= 1e6 ? short.format(value) : whole.format(Math.round(value)));
const rate = (value) => (value > 0 && value < 10 ? value.toFixed(1) : count(value));
const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function brief(seconds) {
  if (seconds === null) return "–";
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

const ahead = (seconds) => (seconds < 1 ? "now" : `in ${duration(seconds)}`);

function say(id, text) {
  const node = at(id);
  if (node.textContent !== text) node.textContent = text;
}

function make(tag, name, text) {
  const node = document.createElement(tag);
  node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Replaces the rows only where they have changed, so that what a reader has selected stays.
function show(id, rows, none) {
  const wanted = rows.length ? rows : [make("div", "none", none)];
  const holder = at(id);
  const fresh = make("div", holder.className);
  fresh.append(...wanted);
  if (fresh.innerHTML !== holder.innerHTML) holder.replaceChildren(...wanted);
}

function row(...cells) {
  const node = make("div", "row");
  node.append(...cells);
  return node;
}

const number = (text) => make("span", "number", text);

function headline(status) {
  const held = status.apps.filter((app) => app.state === "held").length;
  if (status.upstream.state === "failing") return "Upstream does not take events";
  if (held) return `${held} app${held > 1 ? "s are" : " is"} held until somebody acts`;
  if (status.problems.some((problem) => problem.severity === "error")) return "Something is wrong";
  if (status.problems.length) return "Delivering, with something to look into";
  return status.queue.waitingEvents || status.upstream.state === "ok" ? "All is well" : "Ready";
}

function subline(status) {
  const waiting = `${count(status.queue.waitingEvents)} event${status.queue.waitingEvents === 1 ? "" : "s"}`;
  if (status.upstream.state === "failing") {
    return `For ${duration(status.upstream.sinceSeconds)}. ${waiting} wait on disk; nothing is lost.`;
  }
  if (status.queue.waitingEvents) return `${waiting} wait for delivery.`;
  return status.upstream.state === "ok" ? "Everything that was accepted is delivered." : "Nothing was sent yet.";
}

function showState(state, status) {
  document.body.dataset.state = state;
  document.title = state === "ok" ? "collector" : `${at("headline").textContent} · collector`;
  const dot = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${COLOURS[state]}"/></svg>`;
  const icon = `data:image/svg+xml,${encodeURIComponent(dot)}`;
  if (at("icon").href !== icon) at("icon").href = icon;
}

function showUpstream(upstream, nowMs) {
  const words = { ok: "ok", failing: "failing", unknown: "nothing delivered yet" };
  at("upstream-state").className = `pill ${upstream.state}`;
  say("upstream-state", words[upstream.state]);
  say("upstream-url", upstream.url);
  say("upstream-last", upstream.lastDeliveryMs === null ? "none since the start"
    : `${clock(upstream.lastDeliveryMs)} (${duration((nowMs - upstream.lastDeliveryMs) / 1000)} ago)`);
  const failing = upstream.state === "failing";
  say("upstream-next-name", failing ? `Fails for ${duration(upstream.sinceSeconds)}, next attempt` : "Next attempt");
  say("upstream-next", failing ? ahead(upstream.againInSeconds) : "when something waits");
}

function showApps(status) {
  const head = row(...["App", "State"].map((text) => make("span", "", text)),
    ...["Waiting", "Oldest", "Dead"].map(number));
  head.classList.add("head");
  const rows = status.apps.map((app) => {
    const state = make("span", "");
    state.append(make("span", `pill ${app.state}`, app.state));
    const node = row(make("span", "", app.appId), state, number(count(app.waitingEvents)),
      number(brief(app.oldestAgeSeconds)), number(count(app.deadEvents)));
    if (app.reason !== null) {
      const next = `For ${duration(app.sinceSeconds)}, next attempt ${ahead(app.againInSeconds)}`;
      node.append(make("span", "why", app.state === "held" ? `${next}: ${app.reason}` : next));
      node.title = app.reason;
    }
    return node;
  });
  show("apps", rows.length ? [head, ...rows] : [], "None yet: an app appears with its first event.");
  say("apps-more", status.appsLeftOut ? `${count(status.appsLeftOut)} more are not shown` : "");
}

function showDead(status) {
  const { reasons, latest } = status.deadLetters;
  say("dead-total", status.queue.deadEvents ? count(status.queue.deadEvents) : "");
  show("dead", reasons.map((reason) => row(make("b", "", count(reason.events)), make("span", "", reason.reason),
    make("span", "number when muted", clock(reason.latestMs)))), "None: upstream has refused nothing for good.");
  show("letters", latest.map((letter) => row(make("span", "muted", new Date(letter.buriedMs).toLocaleString("en-GB")),
    make("span", "", letter.appId), make("span", "", letter.reason))), "None.");
  at("letters-box").hidden = latest.length === 0;
}

function showLimits(limits) {
  const rows = limits.map((limit) => {
    const write = limit.unit === "bytes" ? bytes : count;
    const share = Math.min(1, limit.used / limit.maximum);
    const bar = make("span", `bar ${share >= 1 ? "error" : share >= 0.8 ? "warning" : ""}`);
    const part = make("span", "");
    part.style.width = `${(100 * share).toFixed(1)}%`;
    bar.append(part);
    return row(make("span", "", limit.key), number(`${write(limit.used)} of ${write(limit.maximum)}`), bar);
  });
  show("limits", rows, "None.");
}

function showCounts(status) {
  const totals = status.totals;
  const pairs = [["Accepted", totals.accepted], ["Duplicates", totals.duplicates], ["Rejected", totals.rejected],
    ["Delivered", totals.delivered], ["Buried as dead letters", totals.buried], ["Dropped by the kernel", totals.kernelDrops]];
  show("totals", pairs.map(([name, value]) => row(make("span", "", name), number(count(value)))), "");
  show("refusals", status.refusals.map((refusal) => row(
    make("span", "", `${refusal.source}: ${refusal.reason.replaceAll("_", " ")}`), number(count(refusal.count)))), "Nothing.");
}

// The plots: 300 x 100 units, stretched; a second is a unit wide and the present is at the right.

let rates = { accepted: [], delivered: [], waiting: [] };
let cursor = null;

function smooth(values) {
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - 2), i + 1);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

function nice(value) {
  if (value <= 10) return 10;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((top) => top >= value);
}

function line(values, top) {
  const from = HISTORY - values.length;
  return values.map((value, i) => `${i ? "L" : "M"}${from + i + 1} ${(100 - (100 * value) / top).toFixed(2)}`).join("");
}

const area = (values, top) => (values.length ? `${line(values, top)}L${HISTORY} 100L${HISTORY - values.length + 1} 100Z` : "");
const draw = (selector, d) => document.querySelector(selector).setAttribute("d", d);

function plot() {
  const accepted = smooth(rates.accepted);
  const delivered = smooth(rates.delivered);
  const top = nice(Math.max(0, ...accepted, ...delivered));
  const most = nice(Math.max(0, ...rates.waiting));
  draw("#rates .grid", `M0 0H${HISTORY}M0 50H${HISTORY}`);
  draw("#rates .line.in", line(accepted, top));
  draw("#rates .line.out", line(delivered, top));
  draw("#rates .area", area(accepted, top));
  draw("#backlog .line", line(rates.waiting, most));
  draw("#backlog .area", area(rates.waiting, most));
  say("rate-top", `${count(top)}/s`);
  say("rate-middle", `${count(top / 2)}/s`);
  say("backlog-top", `${count(most)} waiting`);
  const ago = cursor === null ? 0 : Math.round((1 - cursor) * HISTORY);
  const i = rates.waiting.length - 1 - ago;
  for (const id of ["rates", "backlog"]) draw(`#${id} .cursor`, cursor === null ? "" : `M${HISTORY - ago} 0V100`);
  say("at", cursor === null || i < 0 ? "\u00a0"
    : `${duration(ago)} ago: in ${rate(rates.accepted[i])}/s, out ${rate(rates.delivered[i])}/s, ${count(rates.waiting[i])} waiting`);
}

at("plot").addEventListener("pointermove", (event) => {
  const box = at("plot").getBoundingClientRect();
  cursor = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  plot();
});
at("plot").addEventListener("pointerleave", () => { cursor = null; plot(); });

function render(status) {
  const errors = status.problems.some((problem) => problem.severity === "error");
  say("headline", headline(status));
  say("subline", subline(status));
  showState(errors ? "error" : status.problems.length ? "warning" : "ok");
  show("problems", status.problems.map((problem) => make("li", problem.severity, problem.text)), "");
  at("problems").hidden = status.problems.length === 0;
  say("version", status.version);
  say("uptime", `up ${duration(status.uptimeSeconds)}`);
  say("in", rate(status.rates.acceptedNow));
  say("out", rate(status.rates.deliveredNow));
  say("waiting", count(status.queue.waitingEvents));
  say("waiting-bytes", `events, ${bytes(status.queue.waitingBytes)}`);
  say("oldest", brief(status.queue.oldestAgeSeconds));
  say("files", `${status.queue.path}: ${bytes(status.queue.fileBytes)} + log ${bytes(status.queue.walBytes)}, `
    + `${count(status.queue.rememberedKeys)} keys remembered`);
  rates = status.rates;
  plot();
  showUpstream(status.upstream, status.nowMs);
  showApps(status);
  showDead(status);
  showLimits(status.limits);
  showCounts(status);
}

let answeredAt = Date.now();

async function look() {
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    render(await answer.json());
    answeredAt = Date.now();
  } catch (error) {
    say("headline", "The collector does not answer");
    say("subline", `Since ${clock(answeredAt)}. This page asks again each second; what is below is old.`);
    showState("lost");
  }
  setTimeout(look, document.hidden ? 5 * EVERY_MS : EVERY_MS);
}

look();
