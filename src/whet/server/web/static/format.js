// Numbers as people read them: three digits that mean something, and a unit.

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const NONE = "–";

export function whole(value) {
  return value === null || value === undefined ? NONE : GROUPED.format(value);
}

// Three significant digits, from 10,000 on in thousands only where `short`.
export function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 100 || value === 0) return GROUPED.format(value);
  if (size >= 10) return value.toFixed(1);
  return size >= 0.1 ? value.toFixed(2) : value.toPrecision(1);
}

// A round number, as an axis shows it.
export function axis(value) {
  return value >= 1000 ? GROUPED.format(value) : String(Number(value.toPrecision(3)));
}

export function durationAxis(us) {
  const [scale, unit] = us < 1000 ? [1, "µs"] : us < 1e6 ? [1e3, "ms"] : [1e6, "s"];
  return `${axis(us / scale)} ${unit}`;
}

// [number, unit] of a duration in microseconds.
export function durationParts(us) {
  if (us === null || us === undefined || Number.isNaN(us)) return [NONE, ""];
  if (us < 1000) return [String(Math.round(us)), "µs"];
  if (us < 1e6) return [digits(us / 1e3), "ms"];
  return [digits(us / 1e6), "s"];
}

export function duration(us) {
  const [number, unit] = durationParts(us);
  return unit ? `${number} ${unit}` : number;
}

function digits(value) {
  return value >= 100 ? GROUPED.format(value) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function bytes(count) {
  if (count === null || count === undefined) return NONE;
  if (count < 1024) return `${count} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = count / 1024;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${digits(value)} ${units[unit]}`;
}

export function percent(share) {
  if (share === null || share === undefined) return NONE;
  return `${(share * 100).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;
}

// A span of seconds in its two largest units.
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const [d, hours, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (d) return `${d} d ${hours} h`;
  if (hours) return `${hours} h ${m} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
}

export function ago(seconds) {
  return seconds < 1.5 ? "now" : `${span(seconds)} ago`;
}

// The least of 1, 2, 2.5, 5 times a power of ten that is not below `value`.
export function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 2.5, 5, 10].find((s) => s * power >= value * (1 - 1e-9));
  return step * power;
}
