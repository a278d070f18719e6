// Small charts: lines over the last minutes as SVG, and bars.

import { h, keep, setText, svg } from "./dom.js";
import { ago, niceTop, whole } from "./format.js";
import { POINTS } from "./feed.js";

const HEIGHT = 112;
const TOP = 8;
const BOTTOM = 18;
const GAP_S = 5;

// Lines over time. `lines`: { field, name, tone }; `format` writes a value; `least`: the axis goes at least so far.
export class LineChart {
  constructor({ title, lines, format, least = 1, most = null, axis = format }) {
    Object.assign(this, { title, lines, format, least, most, axis });
    this.points = [];
    this.width = 0;
    this.at = null;
    this.grid = svg("g", { class: "grid" });
    this.paths = lines.map((line, i) => ({
      area: i === 0 ? svg("path", { class: `area ${line.tone}` }) : null,
      path: svg("path", { class: `line ${line.tone}` }),
      dot: svg("circle", { class: `dot ${line.tone}`, r: 3, visibility: "hidden" }),
    }));
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    const marks = this.paths.flatMap(({ area, path }) => [area, path]).filter(Boolean);
    this.svg = svg("svg", { role: "img", height: HEIGHT, "aria-label": title }, this.grid, marks, this.cursor, this.paths.map((p) => p.dot));
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "chart" }, this.svg, this.tip);
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  update(points) {
    const last = points.at(-1)?.t ?? 0;
    // Answers that came late are further apart than a second.
    this.points = points.filter((p) => last - p.t <= POINTS);
    this.draw();
  }

  point(x) {
    this.at = x;
    this.mark();
  }

  x(t) {
    const last = this.points.at(-1)?.t ?? 0;
    return this.width - 1 - ((last - t) / POINTS) * (this.width - 2);
  }

  y(value) {
    return TOP + (1 - Math.min(value / this.top, 1)) * (HEIGHT - TOP - BOTTOM);
  }

  draw() {
    const width = Math.floor(this.element.clientWidth);
    if (!width) return;
    this.width = width;
    this.svg.setAttribute("width", width);
    let most = 0;
    for (const { field } of this.lines) for (const p of this.points) if (p[field] > most) most = p[field];
    this.top = this.most ?? niceTop(Math.max(most * 1.05, this.least));
    this.drawGrid();
    this.lines.forEach(({ field }, i) => {
      const { area, path } = this.paths[i];
      const runs = this.runs(field);
      path.setAttribute("d", runs.map((run) => `M${run.map((p) => `${this.x(p.t).toFixed(1)} ${this.y(p[field]).toFixed(1)}`).join("L")}`).join(""));
      const base = HEIGHT - BOTTOM;
      area?.setAttribute("d", runs.map((run) => {
        const line = run.map((p) => `${this.x(p.t).toFixed(1)} ${this.y(p[field]).toFixed(1)}`).join("L");
        return `M${this.x(run[0].t).toFixed(1)} ${base}L${line}L${this.x(run.at(-1).t).toFixed(1)} ${base}Z`;
      }).join(""));
    });
    const last = this.points.at(-1);
    const said = last ? this.lines.map((l) => `${l.name} ${this.format(last[l.field])}`).join(", ") : "no figures yet";
    this.svg.setAttribute("aria-label", `${this.title}: ${said}`);
    this.mark();
  }

  // Stretches without a hole: where nothing is known, no line is drawn.
  runs(field) {
    const found = [];
    let run = [];
    let before = null;
    for (const p of this.points) {
      const isHole = p[field] === null || p[field] === undefined;
      if (run.length && (isHole || p.t - before > GAP_S)) {
        found.push(run);
        run = [];
      }
      if (!isHole) run.push(p);
      before = p.t;
    }
    if (run.length) found.push(run);
    return found;
  }

  drawGrid() {
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const y = Math.round(this.y(this.top * share)) + 0.5;
      parts.push(svg("line", { x1: 0, x2: this.width, y1: y, y2: y, class: share ? "" : "base" }));
      if (share) parts.push(svg("text", { x: 0, y: y + 11 }, this.axis(this.top * share)));
    }
    const low = HEIGHT - 4;
    parts.push(svg("text", { x: 0, y: low }, "3 min ago"), svg("text", { x: this.width, y: low, "text-anchor": "end" }, "now"));
    this.grid.replaceChildren(...parts);
  }

  // The values under the pointer.
  mark() {
    const hide = () => {
      this.tip.hidden = true;
      for (const part of [this.cursor, ...this.paths.map((p) => p.dot)]) part.setAttribute("visibility", "hidden");
    };
    if (this.at === null || this.points.length < 2) return hide();
    const near = this.points.reduce((a, b) => (Math.abs(this.x(b.t) - this.at) < Math.abs(this.x(a.t) - this.at) ? b : a));
    const x = this.x(near.t);
    if (Math.abs(x - this.at) > 24) return hide();
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.cursor.setAttribute("visibility", "visible");
    this.lines.forEach(({ field }, i) => {
      const value = near[field];
      const { dot } = this.paths[i];
      dot.setAttribute("visibility", value === null || value === undefined ? "hidden" : "visible");
      if (value !== null && value !== undefined) {
        dot.setAttribute("cx", x);
        dot.setAttribute("cy", this.y(value));
      }
    });
    const rows = this.lines.map((l) => h("div", {}, h("i", { class: l.tone }), h("span", {}, l.name), h("b", {}, this.format(near[l.field]))));
    this.tip.replaceChildren(h("div", { class: "when" }, ago(this.points.at(-1).t - near.t)), ...rows);
    this.tip.hidden = false;
    this.tip.style.left = `${Math.min(Math.max(x - this.tip.offsetWidth / 2, 0), this.width - this.tip.offsetWidth)}px`;
    return undefined;
  }
}

// Rows of a name, a bar and a value. `update` takes [{ name, text, value, tone }] and says `empty` where there are none.
export class Bars {
  constructor({ format = whole }) {
    this.format = format;
    this.list = h("ul", { class: "bars" });
    this.empty = h("p", { class: "empty" });
    this.element = h("div", {}, this.list, this.empty);
  }

  update(rows, empty) {
    this.all = rows.reduce((a, r) => a + r.value, 0);
    this.most = rows.reduce((a, r) => Math.max(a, r.value), 0);
    setText(this.empty, empty);
    this.empty.hidden = rows.length > 0;
    this.list.hidden = rows.length === 0;
    keep(this.list, rows, (r) => r.name, (row) => {
      const name = h("span", { class: "name" }, row.name);
      const text = row.text ? h("span", { class: "why" }, row.text) : null;
      const fill = h("span", { class: `fill ${row.tone ?? "t1"}` });
      const value = h("span", { class: "value" });
      const share = h("span", { class: "share" });
      const element = h("li", {}, name, value, share, text, h("span", { class: "track", "aria-hidden": "true" }, fill));
      return {
        element,
        update: (r) => {
          fill.style.width = `${this.most ? (r.value / this.most) * 100 : 0}%`;
          setText(value, this.format(r.value));
          setText(share, this.all ? `${Math.round((r.value / this.all) * 100)} %` : "");
        },
      };
    });
  }
}

// Columns of counts by size, such as batches by rows.
export class Columns {
  constructor({ title }) {
    this.title = title;
    this.list = h("ol", { class: "columns" });
    this.empty = h("p", { class: "empty" });
    this.element = h("div", {}, this.list, this.empty);
  }

  update(columns, empty) {
    this.most = columns.reduce((a, c) => Math.max(a, c.value), 0);
    this.all = columns.reduce((a, c) => a + c.value, 0);
    setText(this.empty, empty);
    this.empty.hidden = this.most > 0;
    this.list.hidden = this.most === 0;
    this.list.setAttribute("aria-label", this.title);
    keep(this.list, columns, (c) => c.name, (column) => {
      const fill = h("span", { class: "fill" });
      const value = h("span", { class: "value" });
      const element = h("li", {}, h("span", { class: "room" }, value, fill), h("span", { class: "name" }, column.name));
      return {
        element,
        update: (c) => {
          // The number above the column takes 16px of the room.
          fill.style.height = c.value ? `max(2px, calc((100% - 16px) * ${c.value / this.most}))` : "0";
          setText(value, c.value ? `${Math.max(1, Math.round((c.value / this.all) * 100))}%` : "");
          element.setAttribute("title", `${whole(c.value)} of ${whole(this.all)} batches`);
        },
      };
    });
  }
}
