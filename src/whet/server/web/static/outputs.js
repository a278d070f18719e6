// What a model answered: each output with its figures, its largest values with their labels, and its values.

import { h } from "./dom.js";
import { whole } from "./format.js";
import { toText } from "./tensors.js";

const CLASSES = 5;
const ROWS = 4;
const SHOWN = 256;
const MOST_CLASSES = 100000;

function numbersOf(values) {
  let [low, high, sum, odd] = [Infinity, -Infinity, 0, 0];
  for (const v of values) {
    const x = Number(v);
    if (Number.isFinite(x)) {
      low = Math.min(low, x);
      high = Math.max(high, x);
      sum += x;
    } else odd += 1;
  }
  const count = values.length - odd;
  return { low, high, mean: count ? sum / count : null, odd, count };
}

function brief(value) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));
}

function summary(values) {
  const { low, high, mean, odd, count } = numbersOf(values);
  const parts = count ? [`min ${brief(low)}`, `mean ${brief(mean)}`, `max ${brief(high)}`] : [];
  if (odd) parts.push(`${whole(odd)} not finite`);
  return parts.join(", ");
}

// Indices of the largest values of a row, largest first.
function largest(row, count) {
  const order = row.map((_, i) => i).filter((i) => !Number.isNaN(Number(row[i])));
  return order.sort((a, b) => Number(row[b]) - Number(row[a]) || a - b).slice(0, count);
}

// Where an output holds a score for each class: the scores of each row; else null.
export function scores(output, labels) {
  const { shape, values, datatype } = output;
  if (datatype === "BYTES" || datatype === "BOOL") return null;
  const width = shape.at(-1) ?? 0;
  const isVector = shape.length > 0 && shape.slice(1, -1).every((d) => d === 1);
  if (width < 2 || width > MOST_CLASSES || !isVector) return null;
  if (!labels.length && !datatype.match(/^[FB]/)) return null;
  const rows = [];
  for (let i = 0; i < Math.min(values.length, width * ROWS); i += width) rows.push(values.slice(i, i + width));
  return rows;
}

function classList(row, labels) {
  const { low, high } = numbersOf(row);
  const items = largest(row, CLASSES).map((index) => {
    const fill = h("span", { class: "fill t1" });
    fill.style.width = `${high > low ? ((Number(row[index]) - low) / (high - low)) * 100 : 0}%`;
    return h("li", {},
      h("span", {}, h("span", { class: "name" }, labels[index] || `class ${index}`), labels[index] && h("span", { class: "index" }, String(index))),
      h("span", { class: "value" }, brief(Number(row[index]))), h("span", { class: "track", "aria-hidden": "true" }, fill));
  });
  return h("ol", { class: "bars classes" }, items);
}

// One output as an element. `labels`: the names of its classes, [] for none.
export function outputPart(output, labels) {
  const { name, datatype, shape, values } = output;
  const rows = scores(output, labels);
  const shown = h("pre", { class: "mono" }, toText(values, shape, SHOWN));
  const more = values.length > SHOWN ? `The first ${SHOWN} of ${whole(values.length)} values` : `${whole(values.length)} ${values.length === 1 ? "value" : "values"}`;
  const skipped = rows && values.length > rows.length * rows[0].length;
  return h("div", { class: "output" },
    h("header", {}, h("h3", { class: "mono" }, name), h("span", { class: "kind" }, `${datatype} ${shape.join("×") || "one value"}`),
      datatype !== "BYTES" && datatype !== "BOOL" && h("span", { class: "hint" }, summary(values))),
    rows && rows.map((row, i) => h("div", {}, rows.length > 1 && h("p", { class: "hint" }, `Row ${i + 1}`), classList(row, labels))),
    skipped && h("p", { class: "hint" }, `The first ${ROWS} rows.`),
    h("details", { open: !rows }, h("summary", {}, more), shown));
}
