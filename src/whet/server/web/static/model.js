// One version of a model: its figures, what it is, and a form to try it.

import { adminNote, buttons } from "./admin.js";
import { h, setText, show } from "./dom.js";
import { keyOf } from "./feed.js";
import { ago, bytes, duration, figure, percent, whole } from "./format.js";
import { memoryOf, modelLink, pill, stateOf } from "./overview.js";
import { Batches, card, Traffic } from "./panels.js";
import { TryIt } from "./tryit.js";

const MEMORY = [["weights", "weights"], ["arena", "arena"], ["contexts", "contexts"], ["code", "code"], ["tables", "tables"]];
const AGAIN_MS = 5000;

export class ModelView {
  constructor(feed, name, version) {
    Object.assign(this, { feed, name, version });
    this.key = keyOf({ name, version });
    this.state = pill();
    this.reason = h("p", { class: "reason" });
    this.actions = buttons(feed, name);
    this.admin = adminNote(feed);
    this.versions = h("span", { class: "versions" });
    this.traffic = new Traffic(feed, this.key);
    this.batches = new Batches(feed, this.key);
    this.facts = h("dl", { class: "facts" });
    this.tensors = h("div");
    this.scheduler = h("dl", { class: "facts" });
    this.config = h("pre", { class: "mono" });
    this.tryPlace = h("div");
    this.loadedAs = null;
    this.absent = h("p", { class: "empty" });
    this.schedulerCard = card("Scheduler", null, this.scheduler);
    this.served = h("div", { class: "served" },
      h("div", { class: "grid three" }, this.traffic.elements),
      h("div", { class: "grid split" },
        h("div", { class: "stack" },
          card("Try it", "values go to this server and nowhere else", this.tryPlace),
          h("div", { class: "grid two" }, this.batches.elements)),
        h("div", { class: "stack" }, card("Inputs and outputs", null, this.tensors), card("Facts", null, this.facts), this.schedulerCard,
          card("Configuration", null, h("details", {}, h("summary", {}, "Complete, with what was left out filled in"), this.config)))));
    this.element = h("div", { class: "view" },
      h("div", { class: "heading" },
        h("a", { href: "#/", class: "back" }, "Models"), h("span", { class: "hint", "aria-hidden": "true" }, "/"),
        h("h1", { class: "mono" }, name), this.versions, this.state.element, h("span", { class: "room" }), this.admin.element, this.actions.element),
      this.reason, this.absent, this.served);
  }

  close() {
    clearTimeout(this.timer);
    this.isClosed = true;
  }

  update() {
    const { feed } = this;
    const { latest } = feed;
    const states = latest.states.filter((s) => s.name === this.name);
    const entry = states.find((s) => s.version === this.version);
    const model = latest.byKey.get(this.key);
    this.updateHeading(states, entry);
    show(this.served, Boolean(model));
    show(this.absent, !model);
    const others = states.some((s) => s.state === "READY" && s.version !== this.version);
    setText(this.absent, entry || states.length ? `This version is not served.${others ? " Another one is: choose it above." : ""}` : "The server knows no model of this name.");
    if (!model) {
      this.loadedAs = null;
      return;
    }
    this.traffic.update();
    this.batches.update();
    this.updateFacts(model);
    // Loaded anew, it may be another model.
    const stamp = `${latest.started} ${model.load_s}`;
    if (this.loadedAs !== stamp && !feed.lost) {
      this.loadedAs = stamp;
      this.describe(true);
    }
  }

  updateHeading(states, entry) {
    this.state.update(entry ? stateOf(entry) : { text: "unknown", tone: "idle" });
    setText(this.reason, entry && entry.reason !== "not loaded" ? entry.reason : "");
    show(this.reason, Boolean(this.reason.textContent));
    this.actions.update(states);
    this.admin.update();
    const shown = states.map((s) => s.version).join();
    if (this.versions.dataset.shown !== shown) {
      this.versions.dataset.shown = shown;
      this.versions.replaceChildren(...states.filter((s) => s.version).map((s) => h("a", {
        href: modelLink(this.name, s.version), "aria-current": s.version === this.version ? "page" : null, class: "tag",
      }, `version ${s.version}`)));
    }
  }

  updateFacts(model) {
    const hits = model.durations.cache_hit[0];
    const looked = hits + model.durations.cache_miss[0];
    const memory = model.memory;
    const now = (this.feed.latest.started + this.feed.latest.uptime_s) * 1000;
    const rows = [
      ["Platform", model.platform],
      ["Backend", this.about?.backend],
      ["Providers", this.about?.providers.join(", ")],
      ["Largest batch", model.max_batch_rows ? `${whole(model.max_batch_rows)} rows` : "not batched"],
      ["Instances", model.instances ? `${whole(model.instances)}, ${whole(model.running)} running` : null],
      ["Load time", duration(model.load_s * 1e6)],
      ["Memory", memory ? bytes(memoryOf(memory)) : null],
      ["", memory && memoryOf(memory) ? MEMORY.filter(([field]) => memory[field]).map(([field, name]) => `${name} ${bytes(memory[field])}`).join(", ") : null],
      ["Shared weights", memory?.shared_weights ? bytes(memory.shared_weights) : null],
      ["Requests", `${whole(model.durations.success[0])} answered, ${whole(model.durations.fail[0])} failed`],
      ["Batches", `${whole(model.batches)} with ${whole(model.rows)} rows`],
      ["Response cache", looked ? `${percent(hits / looked)} of ${whole(looked)} found` : null],
      ["Last request", model.last_ms ? ago((now - model.last_ms) / 1000) : "none yet"],
    ];
    pairs(this.facts, rows.filter(([, text]) => text));
  }

  // Ask what the model is, and from time to time how its scheduler stands. `isNew`: make the form anew.
  async describe(isNew = false) {
    clearTimeout(this.timer);
    try {
      const answer = await fetch(`models/${encodeURIComponent(this.name)}/${encodeURIComponent(this.version)}`, { cache: "no-store", signal: AbortSignal.timeout(4000) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      if (this.isClosed) return;
      this.about = await answer.json();
      pairs(this.scheduler, schedulerRows(this.about.scheduler));
      if (isNew) {
        setText(this.config, JSON.stringify(this.about.config, null, 2));
        this.tensors.replaceChildren(tensorTable("Inputs", this.about.inputs), tensorTable("Outputs", this.about.outputs));
        this.tryPlace.replaceChildren(new TryIt(this.about).element);
      }
    } catch {
      if (isNew) this.loadedAs = null;
    }
    if (!this.isClosed) this.later();
  }

  later() {
    this.timer = setTimeout(() => (document.hidden || !this.loadedAs ? this.later() : this.describe()), AGAIN_MS);
  }
}

function pairs(list, rows) {
  const text = JSON.stringify(rows);
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  list.replaceChildren(...rows.flatMap(([name, value]) => {
    if (!Array.isArray(value)) return [h("dt", {}, name), h("dd", {}, value)];
    return [h("dt", { class: "wide" }, name), h("dd", { class: "wide" }, h("ul", {}, value.map(([k, v]) => h("li", {}, h("span", {}, k), v))))];
  }));
}

function tensorTable(title, tensors) {
  const rows = tensors.map((t) => h("tr", {},
    h("th", { scope: "row", class: "mono" }, t.name, t.is_optional ? h("span", { class: "hint" }, " optional") : null),
    h("td", { class: "mono type" }, t.datatype), h("td", { class: "n mono" }, t.shape.map((d) => (d === -1 ? "?" : d)).join(" × ") || "one value"),
  ));
  const empty = tensors.length ? null : h("p", { class: "hint" }, "none");
  return h("div", { class: "scroll" }, h("table", { class: "tensors" }, h("caption", {}, title), h("tbody", {}, rows)), empty);
}

const NAMES = {
  kind: "Kind", waiting_requests: "Waiting", waiting_rows: "Waiting rows", running: "Running", instances: "Instances",
  run_us: "Time of a run, by rows", rows_expected: "Rows that come, by µs waited", steps: "Steps", sequences: "Sequences",
  sequences_waiting: "Sequences that wait", free_slots: "Free slots", in_flight: "In flight",
};

function schedulerRows(scheduler) {
  return Object.entries(scheduler).map(([name, value]) => {
    const title = NAMES[name] ?? name;
    if (Array.isArray(value)) return [title, value.join(" → ")];
    if (value && typeof value === "object") {
      const write = name === "run_us" ? (x) => duration(x) : figure;
      return [title, Object.keys(value).length ? Object.entries(value).map(([k, v]) => [k, write(v)]) : "not known yet"];
    }
    return [title, typeof value === "number" ? whole(value) : String(value)];
  });
}
