// The fields of one input of a model: its shape, and where its values come from.

import { h, setText, show } from "./dom.js";
import { whole } from "./format.js";
import { drawFile, imageForm, pixels, SCALES, sides } from "./images.js";
import { elements, fromText, random, toText, TYPES, zeros } from "./tensors.js";

const EDITABLE = 2048;
const MOST = 32e6;
const DEFAULT_BOUNDS = { float: [0, 1], int: [0, 9] };

function number(label, value, least) {
  const input = h("input", { type: "number", value, min: least, step: "any", "aria-label": label });
  return input;
}

export class InputFields {
  constructor(tensor, isBatched) {
    this.tensor = tensor;
    this.values = null;
    this.form = imageForm(tensor.shape, tensor.datatype);
    const { kind } = TYPES[tensor.datatype];
    const free = this.form && sides(this.form);
    const offset = tensor.shape.length - 3;
    this.dims = tensor.shape.map((dim, i) => {
      if (dim !== -1) return null;
      const side = free && i >= offset ? (this.form.layout === "CHW" ? [0, free.height, free.width] : [free.height, free.width, 0])[i - offset] : 1;
      const input = number(`${tensor.name}, extent ${i + 1}`, side || 1, 0);
      input.addEventListener("change", () => this.make());
      return input;
    });
    const shape = h("span", { class: "shape" }, this.dims.flatMap((input, i) => [i ? "×" : null, input ?? String(tensor.shape[i])]));
    if (!tensor.shape.length) shape.append("one value");
    if (isBatched && this.dims[0]) this.dims[0].title = "rows of the batch";
    const sources = [["random", "random values"], ["zeros", kind === "text" ? "empty texts" : "zeros"], ["text", kind === "text" ? "texts as JSON" : "values as JSON"]];
    if (this.form) sources.push(["image", "an image file"]);
    if (tensor.is_optional) sources.push(["none", "leave it out"]);
    this.source = h("select", { "aria-label": `${tensor.name}: values` }, sources.map(([value, text]) => h("option", { value }, text)));
    this.source.addEventListener("change", () => this.make());
    const [low, high] = DEFAULT_BOUNDS[kind] ?? [0, 1];
    this.low = number(`${tensor.name}: from`, low);
    this.high = number(`${tensor.name}: to`, high);
    this.bounds = h("span", { class: "bounds" }, h("span", {}, "from"), this.low, h("span", {}, "to"), this.high);
    this.again = h("button", { type: "button", class: "small", on: { click: () => this.make() } }, "New values");
    for (const input of [this.low, this.high]) input.addEventListener("change", () => this.make());
    this.area = h("textarea", { rows: 4, spellcheck: "false", class: "mono", "aria-label": `${tensor.name}: values as JSON` });
    this.area.addEventListener("input", () => { this.isEdited = true; });
    this.note = h("p", { class: "hint" });
    this.image = this.form ? this.imageFields() : null;
    this.element = h("fieldset", { class: "tensor" },
      h("legend", {}, h("span", { class: "mono" }, tensor.name), h("span", { class: "kind" }, tensor.datatype)),
      h("div", { class: "row" }, shape, this.source, this.bounds, this.again),
      this.image?.element, this.area, this.note);
    this.make();
  }

  imageFields() {
    const file = h("input", { type: "file", accept: "image/*", "aria-label": `${this.tensor.name}: image file` });
    const scales = Object.entries(SCALES).map(([value, { name }]) => h("option", { value }, name));
    const scale = h("select", { "aria-label": "Scale of the pixels" }, scales);
    if (this.tensor.datatype === "UINT8") scale.value = "raw";
    const fit = h("select", { "aria-label": "Fit" }, h("option", { value: "crop" }, "middle of the image"), h("option", { value: "stretch" }, "whole image, stretched"));
    const invert = h("input", { type: "checkbox" });
    const canvas = h("canvas", { width: 1, height: 1, role: "img", "aria-label": "The image as the model gets it", hidden: true });
    for (const control of [file, scale, fit, invert]) control.addEventListener("change", () => this.make());
    const element = h("div", { class: "image" }, h("div", { class: "row" }, file, scale, fit, h("label", {}, invert, " inverted")), canvas);
    return { element, file, scale, fit, invert, canvas };
  }

  get shape() {
    return this.tensor.shape.map((dim, i) => (this.dims[i] ? Math.max(0, Math.floor(Number(this.dims[i].value) || 0)) : dim));
  }

  get isLeftOut() {
    return this.source.value === "none";
  }

  // Take values from the chosen source; what cannot be is said below the fields.
  async make() {
    const { datatype } = this.tensor;
    const { kind } = TYPES[datatype];
    const source = this.source.value;
    show(this.bounds, source === "random" && (kind === "float" || kind === "int"));
    show(this.again, source === "random");
    if (this.image) show(this.image.element, source === "image");
    this.isEdited = false;
    this.problem = "";
    const { shape } = this;
    const count = elements(shape);
    try {
      if (count > MOST) throw new Error(`${whole(count)} values are more than this page makes`);
      if (source === "random") this.values = random(datatype, count, Number(this.low.value), Number(this.high.value));
      else if (source === "zeros") this.values = zeros(datatype, count);
      else if (source === "image") await this.fromImage();
      else if (source === "text" && (this.values === null || this.values.length !== count)) this.values = zeros(datatype, count);
    } catch (error) {
      this.values = null;
      this.problem = error.message;
    }
    this.draw();
  }

  async fromImage() {
    const { file, scale, fit, invert, canvas } = this.image;
    const [chosen] = file.files;
    show(canvas, Boolean(chosen));
    if (!chosen) throw new Error("choose an image file");
    const dims = this.shape.slice(-3);
    const [height, width] = this.form.layout === "CHW" ? dims.slice(1) : dims;
    try {
      await drawFile(chosen, canvas, { height, width }, fit.value === "crop");
    } catch {
      throw new Error(`${chosen.name} cannot be read as an image`);
    }
    const one = pixels(canvas, this.form, scale.value, invert.checked);
    const rows = this.shape.length === 4 ? this.shape[0] : 1;
    this.values = Array.from({ length: rows }, () => one).flat();
    if (this.tensor.datatype === "UINT8") this.values = this.values.map((v) => Math.min(255, Math.max(0, Math.round(v))));
  }

  draw() {
    const source = this.source.value;
    const count = this.values?.length ?? 0;
    const isShown = this.values !== null && count <= EDITABLE && source !== "none" && source !== "image";
    show(this.area, isShown);
    if (isShown) {
      this.area.value = toText(this.values, this.shape);
      this.area.rows = Math.min(8, Math.max(2, this.area.value.split("\n").length, Math.ceil(this.area.value.length / 90)));
    }
    const text = this.problem || (source === "none" || isShown ? "" : `${whole(count)} values: too many to show here.`);
    setText(this.note, text);
    this.note.classList.toggle("bad", Boolean(this.problem));
  }

  // { name, datatype, shape, values }. Throws an Error that names what is wrong.
  read() {
    const { name, datatype } = this.tensor;
    if (this.problem) throw new Error(`${name}: ${this.problem}`);
    const values = this.isEdited ? fromText(datatype, this.area.value, name) : this.values;
    const { shape } = this;
    if (values.length !== elements(shape)) throw new Error(`${name}: ${whole(values.length)} values, but ${shape.join("×")} has ${whole(elements(shape))}`);
    return { name, datatype, shape, values };
  }
}
