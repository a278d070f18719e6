// Asks the server for its figures once a second, and makes rates and percentiles of the differences.

const EVERY_MS = 1000;
const TIMEOUT_MS = 4000;
export const WINDOW_S = 10;
export const POINTS = 180;

export const keyOf = (model) => `${model.name}\n${model.version}`;

// The value below which the share `q` of what a histogram counted lies; null where it counted nothing.
export function quantile(bounds, counts, q) {
  const total = counts.reduce((a, b) => a + b, 0);
  if (!total) return null;
  let rest = q * total;
  for (let i = 0; i < counts.length; i += 1) {
    if (rest <= counts[i] && counts[i]) {
      if (i === bounds.length) return bounds[i - 1];
      const low = i ? bounds[i - 1] : 0;
      return low + (bounds[i] - low) * (rest / counts[i]);
    }
    rest -= counts[i];
  }
  return bounds[bounds.length - 1];
}

const EMPTY = {
  rows: 0, batches: 0, failures: {}, closed: {}, durations: {}, histograms: {},
};

function lessNumbers(now, then) {
  const found = {};
  for (const [name, count] of Object.entries(now)) {
    const more = count - (then[name] ?? 0);
    if (more > 0) found[name] = more;
  }
  return found;
}

// What a model version did between two of its counters. One that was loaded anew began at nothing.
export function difference(now, then) {
  const base = then && then.batches <= now.batches && then.durations.success[0] <= now.durations.success[0] ? then : EMPTY;
  const durations = {};
  for (const [name, [count, ns]] of Object.entries(now.durations)) {
    const [oldCount, oldNs] = base.durations[name] ?? [0, 0];
    durations[name] = [count - oldCount, ns - oldNs];
  }
  const histograms = {};
  for (const [name, { counts, sum }] of Object.entries(now.histograms)) {
    const old = base.histograms[name];
    histograms[name] = { counts: old ? counts.map((c, i) => c - old.counts[i]) : counts, sum: sum - (old?.sum ?? 0) };
  }
  return {
    rows: now.rows - base.rows, batches: now.batches - base.batches, failures: lessNumbers(now.failures, base.failures),
    closed: lessNumbers(now.closed, base.closed), durations, histograms,
  };
}

function addNumbers(to, from) {
  for (const [name, count] of Object.entries(from)) to[name] = (to[name] ?? 0) + count;
}

// The sum of several differences.
export function total(differences) {
  const sum = { rows: 0, batches: 0, failures: {}, closed: {}, durations: {}, histograms: {} };
  for (const d of differences) {
    sum.rows += d.rows;
    sum.batches += d.batches;
    addNumbers(sum.failures, d.failures);
    addNumbers(sum.closed, d.closed);
    for (const [name, [count, ns]] of Object.entries(d.durations)) {
      const old = sum.durations[name] ?? [0, 0];
      sum.durations[name] = [old[0] + count, old[1] + ns];
    }
    for (const [name, { counts, sum: added }] of Object.entries(d.histograms)) {
      const old = sum.histograms[name];
      sum.histograms[name] = {
        counts: old ? counts.map((c, i) => c + old.counts[i]) : counts, sum: (old?.sum ?? 0) + added,
      };
    }
  }
  return sum;
}

// Everything that the last answers tell. `latest` is the newest document; `lost` is why there is none, or "".
export class Feed {
  constructor(url) {
    this.url = url;
    this.latest = null;
    this.lost = "";
    this.lastAnswer = 0;
    this.listeners = new Set();
    this.series = new Map();
    this.machine = [];
    this.documents = [];
    this.timer = 0;
    this.asking = false;
  }

  start() {
    document.addEventListener("visibilitychange", () => {
      // A page that nobody sees asks nothing.
      if (document.hidden) clearTimeout(this.timer);
      else this.ask();
    });
    this.ask();
  }

  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  // Ask now, and every second from now on.
  async ask() {
    clearTimeout(this.timer);
    if (this.asking) return;
    this.asking = true;
    const began = performance.now();
    try {
      const answer = await fetch(this.url, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
      if (!answer.ok) throw new Error(`the server answered with status ${answer.status}`);
      this.take(await answer.json());
      this.lost = "";
      this.lastAnswer = Date.now();
    } catch (error) {
      this.lost = error.name === "TimeoutError" ? "it does not answer in time" : "it cannot be reached";
      if (error.message?.startsWith("the server answered")) this.lost = error.message;
    }
    this.asking = false;
    for (const listener of this.listeners) listener();
    if (!document.hidden) this.timer = setTimeout(() => this.ask(), Math.max(100, EVERY_MS - (performance.now() - began)));
  }

  take(doc) {
    const before = this.latest;
    doc.byKey = new Map(doc.models.map((m) => [keyOf(m), m]));
    if (before && before.started !== doc.started) {
      this.documents = [];
      this.series.clear();
      this.machine = [];
    }
    const previous = this.documents.at(-1);
    // After a pause the differences would mix what was long ago with now.
    const paused = previous && doc.clock_ms - previous.clock_ms > 5 * EVERY_MS;
    if (paused) this.documents = [];
    this.latest = doc;
    this.documents.push(doc);
    while (this.documents.length > 2 && doc.clock_ms - this.documents[1].clock_ms >= WINDOW_S * 1000) this.documents.shift();
    this.note(doc, paused ? null : previous);
  }

  // Seconds that the figures of `recent` are of.
  get seconds() {
    return this.documents.length < 2 ? 0 : (this.latest.clock_ms - this.documents[0].clock_ms) / 1000;
  }

  // What a model version, or all of them where `key` is null, did in the last seconds; null where nothing is known yet.
  recent(key = null) {
    if (!this.latest) return null;
    const first = this.documents[0];
    const models = key === null ? this.latest.models : [this.latest.byKey.get(key)].filter(Boolean);
    if (this.documents.length < 2) return null;
    return total(models.map((m) => difference(m, first.byKey.get(keyOf(m)))));
  }

  note(doc, previous) {
    const keys = [null, ...doc.byKey.keys()];
    for (const key of this.series.keys()) if (key !== null && !doc.byKey.has(key)) this.series.delete(key);
    for (const key of keys) {
      const models = key === null ? doc.models : [doc.byKey.get(key)];
      const point = { t: doc.clock_ms / 1000, requests: null, failed: null, p50: null, p95: null, p99: null };
      if (previous) {
        const s = (doc.clock_ms - previous.clock_ms) / 1000;
        const step = total(models.map((m) => difference(m, previous.byKey.get(keyOf(m)))));
        point.requests = (step.durations.success?.[0] ?? 0) / s;
        point.failed = (step.durations.fail?.[0] ?? 0) / s;
        const counts = this.recent(key)?.histograms.request_us?.counts ?? [];
        for (const [name, q] of [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]]) point[name] = quantile(doc.bounds.us, counts, q);
      }
      point.pending = models.reduce((a, m) => a + m.pending, 0);
      point.in_flight = models.reduce((a, m) => a + m.in_flight, 0);
      this.push(this.ring(key), point);
    }
    const m = doc.machine;
    const cores = previous ? (m.process_cpu_s - previous.machine.process_cpu_s) / ((doc.clock_ms - previous.clock_ms) / 1000) : null;
    this.push(this.machine, {
      t: doc.clock_ms / 1000, cpu: m.cpu_utilization, cores, resident: m.process_resident, used: m.memory_used / m.memory_total,
    });
  }

  ring(key) {
    if (!this.series.has(key)) this.series.set(key, []);
    return this.series.get(key);
  }

  push(ring, point) {
    ring.push(point);
    if (ring.length > POINTS + 1) ring.shift();
  }
}
