// The first view: the whole server, and its models.

import { adminNote, buttons } from "./admin.js";
import { h, keep, setClass, setText, show } from "./dom.js";
import { keyOf, quantile, WINDOW_S } from "./feed.js";
import { bytes, duration, figure, whole } from "./format.js";
import { Batches, card, Gpus, Machine, Traffic } from "./panels.js";

const STATES = { READY: "ready", LOADING: "loading", UNLOADING: "unloading", UNAVAILABLE: "not served" };

// A word for a state, with its colour: `tone` is good, busy, bad or idle.
export function stateOf(entry) {
  if (entry.state === "READY") return { text: entry.reason ? "ready, old" : "ready", tone: entry.reason ? "busy" : "good" };
  if (entry.state === "LOADING" || entry.state === "UNLOADING") return { text: STATES[entry.state], tone: "busy" };
  const isIdle = entry.reason === "not loaded" || entry.reason === "unloaded" || entry.reason === "not in the version policy";
  return { text: isIdle ? entry.reason : "failed", tone: isIdle ? "idle" : "bad" };
}

export function pill() {
  const element = h("span", { class: "pill" });
  return {
    element,
    update({ text, tone }) {
      setText(element, text);
      for (const name of ["good", "busy", "bad", "idle"]) setClass(element, name, name === tone);
    },
  };
}

export function modelLink(name, version) {
  return `#/model/${encodeURIComponent(name)}/${encodeURIComponent(version)}`;
}

export function memoryOf(memory) {
  return memory ? memory.weights + memory.arena + memory.contexts + memory.code + memory.tables : null;
}

const COLUMNS = [
  ["Model", ""], ["State", ""], ["Req/s", "n"], ["p50", "n"], ["p99", "n"], ["Waiting", "n"], ["Rows/batch", "n"],
  ["Failed, all", "n"], ["Memory", "n"], ["Load time", "n"],
];

function modelRow(feed, entry) {
  const link = h("a", { class: "mono", href: modelLink(entry.name, entry.version) }, entry.name);
  const version = h("span", { class: "version" }, entry.version && `v${entry.version}`);
  const kind = h("span", { class: "kind" });
  const state = pill();
  const reason = h("div", { class: "reason" });
  const cells = COLUMNS.slice(2).map(([name]) => h("td", { class: "n", "data-name": name }));
  const actions = buttons(feed, entry.name);
  const standing = h("td", { class: "state" }, state.element, reason);
  const element = h("tr", {},
    h("th", { scope: "row" }, h("div", { class: "who" }, link, version, kind)),
    standing, cells,
    h("td", { class: "act" }, actions.element));
  return {
    element,
    update(now) {
      const model = feed.latest.byKey.get(keyOf(now));
      state.update(stateOf(now));
      const isPlain = now.reason === "not loaded" || now.reason === "unloaded";
      setText(reason, isPlain ? "" : now.reason);
      show(reason, Boolean(now.reason) && !isPlain);
      setText(kind, model ? model.platform : "");
      setClass(element, "off", !model);
      standing.colSpan = model ? 1 : 1 + cells.length;
      for (const cell of cells) show(cell, Boolean(model));
      figures(feed, model).forEach((text, i) => setText(cells[i], text));
      actions.update(feed.latest.states.filter((s) => s.name === now.name));
    },
  };
}

function figures(feed, model) {
  if (!model) return ["", "", "", "", "", "", "", ""];
  const recent = feed.recent(keyOf(model));
  const counts = recent?.histograms.request_us?.counts;
  const time = (q) => (counts ? duration(quantile(feed.latest.bounds.us, counts, q)) : "–");
  return [
    recent ? figure(recent.durations.success[0] / feed.seconds) : "–", time(0.5), time(0.99), whole(model.pending),
    recent?.batches ? figure(recent.histograms.batch_rows.sum / recent.batches) : "–", whole(model.durations.fail[0]),
    bytes(memoryOf(model.memory)), duration(model.load_s * 1e6),
  ];
}

export class Overview {
  constructor(feed) {
    this.feed = feed;
    this.traffic = new Traffic(feed, null);
    this.machine = new Machine(feed);
    this.batches = new Batches(feed, null);
    this.gpus = new Gpus(feed);
    this.admin = adminNote(feed);
    this.filter = h("input", { type: "search", placeholder: "Filter models", "aria-label": "Filter models", on: { input: () => this.update() } });
    this.body = h("tbody");
    this.lacks = h("p", { class: "warn", hidden: true });
    this.none = h("div", { class: "empty" });
    const head = h("thead", {}, h("tr", {}, COLUMNS.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions"))));
    this.table = h("table", { class: "models" }, h("caption", { class: "unseen" }, `Models; rates and percentiles are of the last ${WINDOW_S} s`), head, this.body);
    const models = card("Models", null, this.table, this.none);
    models.classList.add("wide");
    this.count = h("span", { class: "hint" });
    models.querySelector("header").append(this.count, this.filter, this.admin.element);
    this.element = h("div", { class: "view" },
      h("h1", { class: "unseen" }, "Overview"),
      this.lacks,
      h("div", { class: "grid four" }, this.traffic.elements, this.machine.element),
      models,
      h("div", { class: "grid four" }, this.batches.elements),
      this.gpus.element);
  }

  update() {
    const { latest } = this.feed;
    if (!latest) return;
    for (const part of [this.traffic, this.machine, this.batches, this.gpus, this.admin]) part.update();
    show(this.lacks, latest.lacks.length > 0 && !latest.loading);
    setText(this.lacks, `The server is not ready: it should have served ${latest.lacks.join(", ")} from its start. The other models answer.`);
    const wanted = this.filter.value.trim().toLowerCase();
    const rows = latest.states.filter((s) => s.name.toLowerCase().includes(wanted));
    show(this.filter, latest.states.length > 6);
    const serving = latest.states.filter((s) => s.state === "READY").length;
    setText(this.count, `${serving} of ${latest.states.length} serving`);
    show(this.table, rows.length > 0);
    show(this.none, rows.length === 0);
    show(this.count, latest.states.length > 0);
    setText(this.none, wanted && latest.states.length ? "No model's name has this in it." : "The repository has no models yet. Put a model.onnx into it, or a folder NAME/1/model.onnx.");
    keep(this.body, rows, keyOf, (entry) => modelRow(this.feed, entry));
  }
}
