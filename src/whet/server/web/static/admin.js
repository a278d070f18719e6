// Loading and unloading, where this port allows it. The token stays in this page's memory and goes nowhere else.

import { h, notice, setText, show } from "./dom.js";

let token = "";
const busy = new Set();

async function post(name, what, parameters = {}) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(`../v2/repository/models/${encodeURIComponent(name)}/${what}`, {
    method: "POST", headers, body: JSON.stringify({ parameters }),
  });
  if (answer.ok) return;
  const text = await answer.text();
  let said = `status ${answer.status}`;
  try {
    said = JSON.parse(text).error ?? said;
  } catch { /* no document: the status says it */ }
  throw new Error(said);
}

async function act(feed, name, what, done) {
  busy.add(name);
  feed.ask();
  try {
    await post(name, what);
    notice(`${name}: ${done}.`);
  } catch (error) {
    notice(`${name} was not ${done}: ${error.message}`, true);
  }
  busy.delete(name);
  feed.ask();
}

function confirmUnload(feed, name) {
  const no = h("button", { type: "button", autofocus: true }, "Keep it");
  const yes = h("button", { type: "button", class: "danger" }, "Unload");
  const dialog = h("dialog", { "aria-label": `Unload ${name}` },
    h("h2", {}, "Unload ", h("span", { class: "mono" }, name), "?"),
    h("p", {}, "Requests that were accepted are answered first. From then on, requests for this model are refused, and so are those for ensembles that hold it."),
    h("div", { class: "actions" }, no, yes));
  no.addEventListener("click", () => dialog.close());
  yes.addEventListener("click", () => {
    dialog.close();
    act(feed, name, "unload", "unloaded");
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

// Why nobody may load by request, whatever port and token they have; null where some may.
const REFUSALS = {
  none: "What lies in the repository at the start is served: --control-mode explicit lets models be loaded here.",
  poll: "The repository is followed: --control-mode explicit lets models be loaded here.",
};
const refusal = (feed) => REFUSALS[feed.latest.control_mode] ?? null;

// The buttons of one model: { element, update(states of the model's versions) }.
export function buttons(feed, name) {
  const load = h("button", { type: "button", class: "small", on: { click: () => act(feed, name, "load", "loaded") } });
  const unload = h("button", { type: "button", class: "small", on: { click: () => confirmUnload(feed, name) } }, "Unload");
  const element = h("div", { class: "actions" }, load, unload);
  return {
    element,
    update(states) {
      show(element, feed.latest.admin !== "off" && !refusal(feed));
      const serves = states.some((s) => s.state === "READY");
      const moves = busy.has(name) || states.some((s) => s.state === "LOADING" || s.state === "UNLOADING");
      setText(load, serves ? "Reload" : "Load");
      load.setAttribute("aria-label", `${serves ? "Reload" : "Load"} ${name}`);
      unload.setAttribute("aria-label", `Unload ${name}`);
      load.disabled = moves || Boolean(feed.lost);
      unload.disabled = moves || !serves || Boolean(feed.lost);
    },
  };
}

// Says how models are loaded here, with the field for the token where one is needed.
export function adminNote(feed) {
  const input = h("input", { type: "password", autocomplete: "off", id: "token", placeholder: "token", spellcheck: "false" });
  input.addEventListener("input", () => { token = input.value; });
  const field = h("form", { on: { submit: (event) => event.preventDefault() } }, h("label", { class: "token" }, h("span", {}, "Administrator's token"), input));
  const text = h("span", { class: "hint" });
  const link = h("a", { class: "hint", hidden: true }, "Open the admin port");
  const element = h("div", { class: "admin" }, text, link, field);
  return {
    element,
    update() {
      const { admin, ports } = feed.latest;
      const refused = refusal(feed);
      show(element, admin !== "open" || Boolean(refused));
      show(field, admin === "token" && !refused);
      show(link, admin === "off" && Boolean(ports.admin) && !refused);
      if (ports.admin) link.href = `${location.protocol}//${location.hostname}:${ports.admin}/ui/${location.hash}`;
      const off = ports.admin ? "Loading is done on the admin port." : "Loading is off: --admin-port or --admin-on-main-port opens it.";
      setText(text, refused ?? (admin === "off" ? off : ""));
    },
  };
}
