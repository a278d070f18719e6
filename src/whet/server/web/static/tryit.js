// A form to try a model: fields made of its metadata, a request, and what came of it.

import { field, h, notice, setText, show } from "./dom.js";
import { bytes, duration, whole } from "./format.js";
import { InputFields } from "./inputs.js";
import { outputPart } from "./outputs.js";
import { decode, encode, plain } from "./tensors.js";

const LENGTH = "inference-header-content-length";
const SHOWN = 64;
const COPIED = 4e6;

export class TryIt {
  constructor(model) {
    this.model = model;
    this.inputs = model.inputs.map((tensor) => new InputFields(tensor, model.max_batch_rows > 0));
    this.sequence = model.is_stateful ? sequenceFields() : null;
    this.repeat = h("input", { type: "number", min: 1, max: 1000, value: 1, step: 1 });
    this.asJson = h("input", { type: "checkbox" });
    this.asJson.addEventListener("change", () => this.switch());
    this.area = h("textarea", { class: "mono", rows: 14, spellcheck: "false", "aria-label": "The request as JSON", hidden: true });
    this.send = h("button", { type: "submit", class: "primary" }, "Run");
    this.error = h("p", { class: "problem", role: "alert", hidden: true });
    this.timing = h("p", { class: "timing", "aria-live": "polite" });
    this.outputs = h("div", { class: "outputs" });
    this.answered = h("div", { class: "answer" }, h("p", { class: "empty" }, "Nothing was sent yet. The answer comes here."));
    this.fields = h("div", { class: "fields" }, this.inputs.map((i) => i.element), this.sequence?.element);
    const copy = h("button", { type: "button", class: "small", on: { click: () => this.copy() } }, "Copy as curl");
    const form = h("form", { on: { submit: (event) => { event.preventDefault(); this.run(); } } },
      this.fields, this.area,
      h("div", { class: "row controls" }, this.send, field("times", this.repeat), h("label", { class: "check" }, this.asJson, " as JSON"), copy),
      this.error);
    this.element = h("div", { class: "try" }, form, this.answered);
  }

  get path() {
    const { name, version } = this.model;
    return `v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}/infer`;
  }

  // The form's tensors and parameters. Throws an Error that names what is wrong.
  read() {
    const inputs = this.inputs.filter((i) => !i.isLeftOut).map((i) => i.read());
    return { inputs, parameters: this.sequence?.read() ?? {} };
  }

  jsonText(most = Infinity) {
    const { inputs, parameters } = this.read();
    const tensors = inputs.map(({ name, shape, datatype, values }) => {
      const data = Array.from(values.slice(0, most), plain).join(", ");
      const cut = values.length > most ? ", …" : "";
      return `    {"name": ${JSON.stringify(name)}, "shape": ${JSON.stringify(shape)}, "datatype": "${datatype}",\n     "data": [${data}${cut}]}`;
    });
    const extra = Object.keys(parameters).length ? `  "parameters": ${JSON.stringify(parameters)},\n` : "";
    return `{\n${extra}  "inputs": [\n${tensors.join(",\n")}\n  ]\n}`;
  }

  switch() {
    try {
      if (this.asJson.checked) this.area.value = this.jsonText();
      this.say("");
    } catch (error) {
      this.asJson.checked = false;
      this.say(error.message);
    }
    show(this.fields, !this.asJson.checked);
    show(this.area, this.asJson.checked);
  }

  async copy() {
    try {
      const text = this.asJson.checked ? this.area.value : this.jsonText();
      if (text.length > COPIED) throw new Error(`the request has ${bytes(text.length)}: too much for a command line`);
      const quoted = text.replaceAll("'", "'\\''");
      const base = new URL("../", location.href.split("#")[0]);
      await navigator.clipboard.writeText(`curl -s '${new URL(this.path, base)}' -H 'content-type: application/json' -d '${quoted}'`);
      notice("The command is in the clipboard.");
    } catch (error) {
      notice(`Not copied: ${error.message}`, true);
    }
  }

  say(text) {
    setText(this.error, text);
    show(this.error, Boolean(text));
  }

  body() {
    if (this.asJson.checked) return { content: this.area.value, headers: { "content-type": "application/json" } };
    const { inputs, parameters } = this.read();
    const data = inputs.map((i) => encode(i.datatype, i.values));
    const head = JSON.stringify({
      parameters: { ...parameters, binary_data_output: true },
      inputs: inputs.map((i, n) => ({ name: i.name, shape: i.shape, datatype: i.datatype, parameters: { binary_data_size: data[n].length } })),
    });
    const start = new TextEncoder().encode(head);
    return { content: new Blob([start, ...data]), headers: { "content-type": "application/octet-stream", [LENGTH]: String(start.length) } };
  }

  async run() {
    this.say("");
    this.send.disabled = true;
    try {
      const { content, headers } = this.body();
      const times = Math.min(1000, Math.max(1, Math.floor(Number(this.repeat.value) || 1)));
      const took = [];
      let answer;
      for (let i = 0; i < times; i += 1) {
        answer = await this.post(content, headers);
        took.push(answer.us);
        if (times > 1) setText(this.send, `Run ${i + 1} of ${times}`);
      }
      this.show(answer, took, content.size ?? content.length);
    } catch (error) {
      this.say(error.message);
      this.answered.replaceChildren(h("p", { class: "empty" }, "The request failed."));
    }
    setText(this.send, "Run");
    this.send.disabled = false;
  }

  async post(content, headers) {
    const began = performance.now();
    const answer = await fetch(`../${this.path}`, { method: "POST", headers, body: content }).catch(() => {
      throw new Error("the server cannot be reached");
    });
    const body = new Uint8Array(await answer.arrayBuffer());
    const us = (performance.now() - began) * 1000;
    const length = answer.headers.get(LENGTH);
    const text = new TextDecoder().decode(length === null ? body : body.subarray(0, Number(length)));
    let document;
    try {
      document = JSON.parse(text);
    } catch {
      throw new Error(`status ${answer.status}: ${text.slice(0, 500)}`);
    }
    if (!answer.ok) throw new Error(document.error ?? `status ${answer.status}`);
    return { document, binary: length === null ? null : body.subarray(Number(length)), us, size: body.length };
  }

  show({ document, binary, size }, took, sent) {
    let at = 0;
    const outputs = document.outputs.map((output) => {
      const length = output.parameters?.binary_data_size;
      let values = [output.data ?? []].flat(Infinity).map((v) => (v === null ? NaN : v));
      if (length !== undefined) {
        values = decode(output.datatype, binary.subarray(at, at + length));
        at += length;
      }
      return { ...output, values };
    });
    const sorted = [...took].sort((a, b) => a - b);
    const many = took.length > 1 ? `${took.length} runs: min ${duration(sorted[0])}, median ${duration(sorted[Math.floor(sorted.length / 2)])}, max ${duration(sorted.at(-1))}` : duration(took[0]);
    setText(this.timing, `${many} seen from here, ${bytes(sent)} sent, ${bytes(size)} received, version ${document.model_version}`);
    const labels = (name) => this.model.outputs.find((o) => o.name === name)?.labels ?? [];
    this.outputs.replaceChildren(...outputs.map((output) => outputPart(output, labels(output.name))));
    this.answered.replaceChildren(this.timing, this.outputs, jsonView(document, outputs));
  }
}

// The answer as the protocol's JSON, the first values of each tensor.
function jsonView(document, outputs) {
  const tensors = outputs.map(({ name, datatype, shape, values }) => {
    const data = Array.from(values.slice(0, SHOWN), plain).join(", ");
    return `    {"name": ${JSON.stringify(name)}, "datatype": "${datatype}", "shape": ${JSON.stringify(shape)},\n     "data": [${data}${values.length > SHOWN ? `, … ${whole(values.length - SHOWN)} more` : ""}]}`;
  });
  const head = `  "model_name": ${JSON.stringify(document.model_name)},\n  "model_version": ${JSON.stringify(document.model_version)},`;
  return h("details", { class: "json" }, h("summary", {}, "The answer as JSON"), h("pre", { class: "mono" }, `{\n${head}\n  "outputs": [\n${tensors.join(",\n")}\n  ]\n}`));
}

function sequenceFields() {
  const id = h("input", { type: "number", min: 1, step: 1, value: Math.floor(Math.random() * 1e6) + 1 });
  const start = h("input", { type: "checkbox", checked: true });
  const end = h("input", { type: "checkbox" });
  const element = h("fieldset", { class: "tensor" }, h("legend", {}, "Sequence"),
    h("div", { class: "row" }, field("id", id), h("label", { class: "check" }, start, " start"), h("label", { class: "check" }, end, " end")));
  return {
    element,
    read: () => ({ sequence_id: Math.floor(Number(id.value)), sequence_start: start.checked, sequence_end: end.checked }),
  };
}
