// Tensors in the page: values of each datatype made, read from text, written to bytes and read back.

const FLOAT = { kind: "float" };
const signed = (bits) => ({ kind: "int", low: -(2n ** BigInt(bits - 1)), high: 2n ** BigInt(bits - 1) - 1n });
const unsigned = (bits) => ({ kind: "int", low: 0n, high: 2n ** BigInt(bits) - 1n });

// `size` in bytes; `get` and `set` are DataView's; `low` and `high` what fits.
export const TYPES = {
  BOOL: { kind: "bool", size: 1, get: (v, i) => v.getUint8(i) !== 0, set: (v, i, x) => v.setUint8(i, x ? 1 : 0) },
  UINT8: { ...unsigned(8), size: 1, get: (v, i) => v.getUint8(i), set: (v, i, x) => v.setUint8(i, x) },
  UINT16: { ...unsigned(16), size: 2, get: (v, i) => v.getUint16(i, true), set: (v, i, x) => v.setUint16(i, x, true) },
  UINT32: { ...unsigned(32), size: 4, get: (v, i) => v.getUint32(i, true), set: (v, i, x) => v.setUint32(i, x, true) },
  UINT64: { ...unsigned(64), size: 8, get: (v, i) => small(v.getBigUint64(i, true)), set: (v, i, x) => v.setBigUint64(i, BigInt(x), true) },
  INT8: { ...signed(8), size: 1, get: (v, i) => v.getInt8(i), set: (v, i, x) => v.setInt8(i, x) },
  INT16: { ...signed(16), size: 2, get: (v, i) => v.getInt16(i, true), set: (v, i, x) => v.setInt16(i, x, true) },
  INT32: { ...signed(32), size: 4, get: (v, i) => v.getInt32(i, true), set: (v, i, x) => v.setInt32(i, x, true) },
  INT64: { ...signed(64), size: 8, get: (v, i) => small(v.getBigInt64(i, true)), set: (v, i, x) => v.setBigInt64(i, BigInt(x), true) },
  FP16: { ...FLOAT, size: 2, get: (v, i) => fromHalf(v.getUint16(i, true)), set: (v, i, x) => v.setUint16(i, toHalf(x), true) },
  BF16: { ...FLOAT, size: 2, get: (v, i) => fromBrain(v.getUint16(i, true)), set: (v, i, x) => v.setUint16(i, toBrain(x), true) },
  FP32: { ...FLOAT, size: 4, get: (v, i) => v.getFloat32(i, true), set: (v, i, x) => v.setFloat32(i, x, true) },
  FP64: { ...FLOAT, size: 8, get: (v, i) => v.getFloat64(i, true), set: (v, i, x) => v.setFloat64(i, x, true) },
  BYTES: { kind: "text", size: 0 },
};

const scratch = new DataView(new ArrayBuffer(4));

// A number where a number holds it exactly.
function small(value) {
  return value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value;
}

function bitsOf(value) {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

function toBrain(value) {
  const bits = bitsOf(value);
  if (Number.isNaN(Number(value))) return 0x7fc0;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function fromBrain(half) {
  scratch.setUint32(0, half << 16);
  return scratch.getFloat32(0);
}

// Round to nearest, ties to even, in one step from the double: a float in between would round twice.
export function toHalf(value) {
  const x = Number(value);
  if (Number.isNaN(x)) return 0x7e00;
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const size = Math.abs(x);
  if (size >= 65520) return sign | 0x7c00;
  const exponent = size < 2 ** -14 ? -14 : Math.floor(Math.log2(size));
  const step = 2 ** (exponent - 10);
  let units = size / step;
  const floor = Math.floor(units);
  const rest = units - floor;
  units = rest > 0.5 || (rest === 0.5 && floor % 2) ? floor + 1 : floor;
  // 1024 units and more carry an exponent; one that rounded up to the next power carries over by itself.
  return sign | (exponent === -14 ? units : ((exponent + 14) << 10) + units);
}

export function fromHalf(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

// Values as the binary form of the protocol.
export function encode(datatype, values) {
  if (datatype === "BYTES") {
    const texts = values.map((text) => new TextEncoder().encode(text));
    const out = new Uint8Array(texts.reduce((n, t) => n + 4 + t.length, 0));
    const view = new DataView(out.buffer);
    let at = 0;
    for (const text of texts) {
      view.setUint32(at, text.length, true);
      out.set(text, at + 4);
      at += 4 + text.length;
    }
    return out;
  }
  const { size, set } = TYPES[datatype];
  const out = new Uint8Array(values.length * size);
  const view = new DataView(out.buffer);
  for (let i = 0; i < values.length; i += 1) set(view, i * size, values[i]);
  return out;
}

// The values of a tensor in the binary form.
export function decode(datatype, data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const found = [];
  if (datatype === "BYTES") {
    for (let at = 0; at + 4 <= data.byteLength;) {
      const length = view.getUint32(at, true);
      found.push(new TextDecoder().decode(data.subarray(at + 4, at + 4 + length)));
      at += 4 + length;
    }
    return found;
  }
  const { size, get } = TYPES[datatype];
  for (let at = 0; at + size <= data.byteLength; at += size) found.push(get(view, at));
  return found;
}

export function elements(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

// Random values between two bounds: floats from all of them, whole numbers with both bounds among them.
export function random(datatype, count, low, high) {
  const { kind } = TYPES[datatype];
  const found = new Array(count);
  for (let i = 0; i < count; i += 1) {
    const r = Math.random();
    if (kind === "float") found[i] = Math.fround(low + (high - low) * r);
    else if (kind === "bool") found[i] = r < 0.5;
    else if (kind === "text") found[i] = Math.floor(r * 1e6).toString(36);
    else found[i] = Math.floor(low + (high - low + 1) * r);
  }
  return found;
}

export function zeros(datatype, count) {
  const { kind } = TYPES[datatype];
  return new Array(count).fill(kind === "bool" ? false : kind === "text" ? "" : 0);
}

// Values from JSON, in nested lists or flat. Throws an Error that says which value does not fit.
export function fromText(datatype, text, name) {
  let document;
  try {
    document = JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: this is no JSON: ${error.message}`);
  }
  const values = [document].flat(Infinity);
  values.forEach((value, i) => check(datatype, value, `${name}, value ${i + 1}`));
  return values;
}

function check(datatype, value, where) {
  const { kind, low, high } = TYPES[datatype];
  const shown = JSON.stringify(value);
  if (kind === "text") {
    if (typeof value !== "string") throw new Error(`${where}: ${shown} is no text in quotes`);
  } else if (kind === "bool") {
    if (typeof value !== "boolean" && value !== 0 && value !== 1) throw new Error(`${where}: ${shown} is not true or false`);
  } else if (typeof value !== "number") throw new Error(`${where}: ${shown} is no number`);
  else if (kind === "int") {
    if (!Number.isInteger(value)) throw new Error(`${where}: ${shown} is not whole, as ${datatype} is`);
    if (BigInt(value) < low || BigInt(value) > high) throw new Error(`${where}: ${shown} does not fit ${datatype}`);
  }
}

// Values as JSON, one row of the last extent a line, the first `most` of them.
export function toText(values, shape, most = Infinity) {
  const width = Math.max(shape.at(-1) ?? 1, 1);
  const lines = [];
  const end = Math.min(values.length, most);
  for (let i = 0; i < end; i += width) {
    lines.push(Array.from(values.slice(i, Math.min(i + width, end)), plain).join(", "));
  }
  return `[${lines.join(",\n ")}]`;
}

// One value as JSON. Numbers that JSON does not have become null, as in the protocol.
export function plain(value) {
  if (typeof value === "bigint") return String(value);
  if (typeof value === "number" && !Number.isFinite(value)) return "null";
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(7)));
  return JSON.stringify(value);
}
