// Everything that /metrics holds, as a table.

import { h, keep, setText, show } from "./dom.js";
import { quantile } from "./feed.js";
import { duration } from "./format.js";

const EVERY_MS = 2000;
const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \S+)?$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const SUFFIX = /_(bucket|sum|count)$/;

function labelsOf(text) {
  const found = {};
  for (const [, name, value] of (text ?? "").matchAll(LABEL)) found[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
  return found;
}

// Families of Prometheus' text format: [{ name, help, kind, samples: [{ key, labels, value, buckets }] }].
export function parse(text) {
  const families = [];
  let family = null;
  for (const line of text.split("\n")) {
    if (line.startsWith("# HELP ")) {
      const [, , name, ...help] = line.split(" ");
      family = { name, help: help.join(" "), kind: "", samples: [], byKey: new Map() };
      families.push(family);
    } else if (line.startsWith("# TYPE ")) family.kind = line.split(" ")[3];
    else {
      const match = SAMPLE.exec(line);
      if (match && family) addSample(family, match);
    }
  }
  return families;
}

function addSample(family, [, name, labelText, value]) {
  const labels = labelsOf(labelText);
  const le = labels.le;
  delete labels.le;
  const key = JSON.stringify(labels);
  let sample = family.byKey.get(key);
  if (!sample) {
    sample = { key, labels, value: "", buckets: [], sum: "", count: "" };
    family.byKey.set(key, sample);
    family.samples.push(sample);
  }
  if (family.kind !== "histogram") sample.value = value;
  else {
    const part = SUFFIX.exec(name)?.[1];
    if (part === "bucket") sample.buckets.push([le, Number(value)]);
    else sample[part] = value;
  }
}

function plainNumber(text) {
  const value = Number(text);
  if (!Number.isFinite(value)) return text;
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(6)));
}

function quantiles(sample, isTime) {
  const bounds = sample.buckets.slice(0, -1).map(([le]) => Number(le));
  const counts = sample.buckets.map(([, n], i) => n - (i ? sample.buckets[i - 1][1] : 0));
  return [0.5, 0.9, 0.99].map((q) => {
    const value = quantile(bounds, counts, q);
    if (value === null) return `p${q * 100} –`;
    return `p${q * 100} ${isTime ? duration(value * 1e6) : Number(value.toPrecision(3))}`;
  }).join("   ");
}

function labelList(labels) {
  const found = Object.entries(labels);
  if (!found.length) return h("span", { class: "hint" }, "the server");
  return found.map(([name, value]) => h("span", { class: "tag" }, h("span", {}, name), h("b", {}, value)));
}

function histogramRow(sample, isTime) {
  const value = h("span");
  const spread = h("span", { class: "hint" });
  const list = h("div", { class: "buckets" });
  const details = h("details", {}, h("summary", {}, spread, value), list);
  const element = h("tr", {}, h("td", {}, labelList(sample.labels)), h("td", { class: "n" }, details));
  return {
    element,
    update(now) {
      setText(value, `${plainNumber(now.count)}, sum ${plainNumber(now.sum)}`);
      setText(spread, quantiles(now, isTime));
      keep(list, now.buckets, ([le]) => le, ([le]) => {
        const count = h("b");
        return { element: h("div", {}, h("span", {}, `≤ ${le}`), count), update: ([, n]) => setText(count, n.toLocaleString("en")) };
      });
    },
  };
}

function plainRow(sample) {
  const value = h("td", { class: "n" });
  return { element: h("tr", {}, h("td", {}, labelList(sample.labels)), value), update: (now) => setText(value, plainNumber(now.value)) };
}

function familyPart(family) {
  const body = h("tbody");
  const none = h("p", { class: "hint" }, "No samples yet.");
  const table = h("table", {}, h("thead", { class: "unseen" }, h("tr", {}, h("th", { scope: "col" }, "Labels"), h("th", { scope: "col" }, "Value"))), body);
  const element = h("section", { class: "family" },
    h("header", {}, h("h2", { class: "mono" }, family.name), h("span", { class: "kind" }, family.kind), h("p", {}, family.help)),
    h("div", {}, h("div", { class: "scroll" }, table), none));
  return {
    element,
    update(now) {
      show(table, now.samples.length > 0);
      show(none, now.samples.length === 0);
      const isTime = now.name.endsWith("_seconds");
      keep(body, now.samples, (s) => s.key, now.kind === "histogram" ? (s) => histogramRow(s, isTime) : plainRow);
    },
  };
}

export class MetricsView {
  constructor(feed) {
    this.feed = feed;
    this.families = [];
    this.filter = h("input", { type: "search", placeholder: "Filter by name, help or label", "aria-label": "Filter metrics", on: { input: () => this.draw() } });
    this.count = h("span", { class: "hint" });
    this.list = h("div", { class: "families card" });
    this.message = h("p", { class: "empty" }, "Reading the metrics.");
    this.element = h("div", { class: "view" },
      h("div", { class: "heading" }, h("h1", {}, "Metrics"), this.count, this.filter, h("a", { href: "../metrics", class: "hint" }, "as text")),
      this.message, this.list);
    this.timer = 0;
    this.read();
  }

  close() {
    clearTimeout(this.timer);
    this.isClosed = true;
  }

  update() {}

  async read() {
    if (!document.hidden) {
      try {
        const answer = await fetch("../metrics", { cache: "no-store", headers: { accept: "text/plain" }, signal: AbortSignal.timeout(4000) });
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        this.families = parse(await answer.text());
        show(this.message, false);
        this.draw();
      } catch {
        setText(this.message, "The metrics cannot be read now.");
        show(this.message, true);
      }
    }
    if (!this.isClosed) this.timer = setTimeout(() => this.read(), EVERY_MS);
  }

  draw() {
    const wanted = this.filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (...texts) => {
      const all = texts.join(" ").toLowerCase();
      return wanted.every((w) => all.includes(w));
    };
    const found = [];
    for (const family of this.families) {
      const isWhole = fits(family.name, family.help);
      const samples = isWhole ? family.samples : family.samples.filter((s) => fits(family.name, family.help, ...Object.entries(s.labels).flat()));
      if (isWhole || samples.length) found.push({ ...family, samples });
    }
    setText(this.count, `${found.length} of ${this.families.length} families`);
    keep(this.list, found, (f) => f.name, familyPart);
  }
}
