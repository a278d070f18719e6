// The panels that the overview and a model's own view share: figures of one model version, or of all together.

import { Bars, Columns, LineChart } from "./charts.js";
import { h, setClass, setText, show } from "./dom.js";
import { quantile, WINDOW_S } from "./feed.js";
import { axis, bytes, duration, durationAxis, durationParts, figure, NONE, percent, whole } from "./format.js";

const FAILURES = {
  REJECTED: "the queue was full, or the time was over",
  CANCELED: "the client went away",
  BACKEND: "the model or the server failed",
  OTHER: "the request was wrong",
};

const PHASES = [
  { name: "Reading inputs", field: "compute_input", tone: "t4" },
  { name: "Waiting in the queue", field: "queue", tone: "t2" },
  { name: "In the model", field: "compute_infer", tone: "t1" },
  { name: "Handing out outputs", field: "compute_output", tone: "t5" },
];

export function card(title, hint, ...children) {
  const head = h("header", {}, h("h2", {}, title), hint && h("span", { class: "hint" }, hint));
  return h("section", { class: "card" }, head, ...children);
}

// A number with its unit and what it is.
export function figureBox(name, tone = "") {
  const value = h("span", { class: "number" }, NONE);
  const unit = h("span", { class: "unit" });
  const label = h("span", { class: "label" }, tone && h("i", { class: tone }), name);
  return {
    element: h("div", { class: "figure" }, label, h("span", { class: "reading" }, value, unit)),
    set(text, unitText = "") {
      setText(value, text);
      setText(unit, unitText);
      setClass(value, "none", text === NONE);
    },
  };
}

function boxes(...figures) {
  return h("div", { class: "figures" }, figures.map((f) => f.element));
}

// Throughput, latency, queue: each a card with numbers and a chart.
export class Traffic {
  constructor(feed, key) {
    this.feed = feed;
    this.key = key;
    this.requests = figureBox("requests/s", "t1");
    this.rows = figureBox("rows/s");
    this.failed = figureBox("failed/s", "t3");
    this.p50 = figureBox("p50", "t1");
    this.p95 = figureBox("p95", "t2");
    this.p99 = figureBox("p99", "t3");
    this.pending = figureBox("waiting", "t2");
    this.flight = figureBox("in flight", "t1");
    this.mean = figureBox("mean wait");
    this.rate = new LineChart({
      title: "Requests per second", format: figure, axis, least: 1,
      lines: [{ field: "requests", name: "answered", tone: "t1" }, { field: "failed", name: "failed", tone: "t3" }],
    });
    this.latency = new LineChart({
      title: "Latency", format: duration, axis: durationAxis, least: 100,
      lines: [{ field: "p50", name: "p50", tone: "t1" }, { field: "p95", name: "p95", tone: "t2" }, { field: "p99", name: "p99", tone: "t3" }],
    });
    this.queue = new LineChart({
      title: "Requests in the server", format: whole, axis, least: 2,
      lines: [{ field: "in_flight", name: "in flight", tone: "t1" }, { field: "pending", name: "waiting", tone: "t2" }],
    });
    this.elements = [
      card("Throughput", "-", boxes(this.requests, this.rows, this.failed), this.rate.element),
      card("Latency", `last ${WINDOW_S} s, in the server`, boxes(this.p50, this.p95, this.p99), this.latency.element),
      card("Queue", "now", boxes(this.pending, this.flight, this.mean), this.queue.element),
    ];
    this.note = this.elements[0].querySelector("header .hint");
  }

  update() {
    const { feed, key } = this;
    const isNested = key === null && feed.latest.models.some((m) => m.platform === "ensemble");
    setText(this.note, `last ${WINDOW_S} s${isNested ? ", with steps" : ""}`);
    if (isNested) this.note.title = "A request for an ensemble counts, and so does each of its steps.";
    const points = feed.series.get(key) ?? [];
    const recent = feed.recent(key);
    const s = feed.seconds;
    const counted = (n) => (recent && s ? figure(n / s) : NONE);
    this.requests.set(counted(recent?.durations.success?.[0] ?? 0));
    this.rows.set(counted(recent?.rows));
    this.failed.set(counted(recent?.durations.fail?.[0] ?? 0));
    const counts = recent?.histograms.request_us?.counts ?? [];
    for (const [box, q] of [[this.p50, 0.5], [this.p95, 0.95], [this.p99, 0.99]]) {
      box.set(...durationParts(counts.length ? quantile(feed.latest.bounds.us, counts, q) : null));
    }
    const last = points.at(-1);
    this.pending.set(whole(last?.pending ?? 0));
    this.flight.set(whole(last?.in_flight ?? 0));
    const [waits, ns] = recent?.durations.queue ?? [0, 0];
    this.mean.set(...durationParts(waits ? ns / waits / 1e3 : null));
    for (const chart of [this.rate, this.latency, this.queue]) chart.update(points);
  }
}

// CPU and memory of the machine and of the server; a card for each GPU.
export class Machine {
  constructor(feed) {
    this.feed = feed;
    this.cpu = figureBox("CPU", "t1");
    this.cores = figureBox("own cores");
    this.memory = figureBox("own memory");
    this.chart = new LineChart({
      title: "Use of the machine", format: percent, most: 1,
      lines: [{ field: "cpu", name: "CPU", tone: "t1" }, { field: "used", name: "memory", tone: "t4" }],
    });
    this.element = card("Machine", "", boxes(this.cpu, this.cores, this.memory), this.chart.element);
    this.hint = this.element.querySelector("header").appendChild(h("span", { class: "hint" }));
  }

  update() {
    const { machine } = this.feed.latest;
    const last = this.feed.machine.at(-1);
    this.cpu.set(...percent(machine.cpu_utilization).split(" "));
    this.cores.set(last?.cores === null ? NONE : figure(last.cores));
    this.memory.set(...bytes(machine.process_resident).split(" "));
    setText(this.hint, `${bytes(machine.memory_used)} of ${bytes(machine.memory_total)} in use`);
    this.chart.update(this.feed.machine);
  }
}

// What happened to requests in the last seconds: batch sizes, why batches were closed, failures, and where time went.
export class Batches {
  constructor(feed, key) {
    this.feed = feed;
    this.key = key;
    this.sizes = new Columns({ title: "Batches by rows" });
    this.closed = new Bars({});
    this.failures = new Bars({});
    this.phases = new Bars({ format: duration });
    const recent = `last ${WINDOW_S} s`;
    this.mean = h("span", { class: "hint" });
    this.sizesCard = card("Batch sizes", null, this.sizes.element);
    this.sizesCard.querySelector("header").append(this.mean);
    this.elements = [
      this.sizesCard,
      card("Why batches ran", recent, this.closed.element),
      card("Time of a request", `mean, ${recent}`, this.phases.element),
      card("Failures", recent, this.failures.element),
    ];
  }

  update() {
    const { feed, key } = this;
    const { bounds, batch_reasons: why } = feed.latest;
    const recent = feed.recent(key);
    const counts = recent?.histograms.batch_rows?.counts ?? [];
    const columns = counts.map((value, i) => ({ name: rangeName(bounds.rows, i), value }));
    const last = columns.findLastIndex((c) => c.value > 0);
    this.sizes.update(columns.slice(0, Math.max(last + 1, 6)), quiet(recent, "No batch ran"));
    setText(this.mean, recent?.batches ? `rows, mean ${figure(recent.histograms.batch_rows.sum / recent.batches)}` : "rows");
    const reasons = Object.entries(recent?.closed ?? {}).map(([name, value]) => ({ name, value, text: why[name] }));
    this.closed.update(sorted(reasons), quiet(recent, "No batch ran"));
    const failures = Object.entries(recent?.failures ?? {}).map(([name, value]) => ({ name, value, text: FAILURES[name], tone: "t3" }));
    this.failures.update(sorted(failures), this.since(recent));
    const requests = recent?.durations.success?.[0] ?? 0;
    const phases = PHASES.map(({ name, field, tone }) => {
      const [n, ns] = recent?.durations[field] ?? [0, 0];
      return { name, tone, value: n ? ns / n / 1e3 : 0 };
    });
    this.phases.update(requests ? phases : [], quiet(recent, "No request was answered"));
  }

  since(recent) {
    const models = this.feed.latest.models.filter((m) => this.key === null || `${m.name}\n${m.version}` === this.key);
    const all = {};
    for (const m of models) for (const [name, n] of Object.entries(m.failures)) all[name] = (all[name] ?? 0) + n;
    const earlier = Object.entries(all).map(([name, n]) => `${name} ${whole(n)}`).join(", ");
    return `${quiet(recent, "No request failed")}${earlier ? ` Since the models were loaded: ${earlier}.` : ""}`;
  }
}

function quiet(recent, text) {
  return recent ? `${text} in the last ${WINDOW_S}\u00a0s.` : "Waiting for the first figures.";
}

function sorted(rows) {
  return rows.sort((a, b) => b.value - a.value);
}

// What the bucket of a histogram of whole numbers holds: "1", "3–4", "> 512".
export function rangeName(bounds, i) {
  if (i === bounds.length) return `> ${bounds[i - 1]}`;
  const low = i ? bounds[i - 1] + 1 : bounds[0];
  return low >= bounds[i] ? `${bounds[i]}` : `${low}–${bounds[i]}`;
}

// A card for each GPU, where there are any.
export class Gpus {
  constructor(feed) {
    this.feed = feed;
    this.body = h("tbody");
    const names = ["GPU", "Utilization", "Memory", "Power", "Temperature", "Energy"];
    const head = h("thead", {}, h("tr", {}, names.map((n, i) => h("th", { scope: "col", class: i ? "n" : "" }, n))));
    this.element = card("GPUs", "", h("div", { class: "scroll" }, h("table", {}, head, this.body)));
    show(this.element, false);
  }

  update() {
    const { gpus } = this.feed.latest;
    show(this.element, gpus.length > 0);
    const unit = (value, text) => (value === null ? NONE : `${figure(value)} ${text}`);
    this.body.replaceChildren(...gpus.map((g) => h("tr", {},
      h("th", { scope: "row", class: "mono" }, g.uuid),
      h("td", { class: "n" }, percent(g.utilization)),
      h("td", { class: "n" }, `${bytes(g.memory_used)} of ${bytes(g.memory_total)}`),
      h("td", { class: "n" }, `${unit(g.power, "W")} of ${unit(g.power_limit, "W")}`),
      h("td", { class: "n" }, unit(g.temperature, "°C")),
      h("td", { class: "n" }, g.energy === null ? NONE : `${figure(g.energy / 3600)} Wh`))));
  }
}
