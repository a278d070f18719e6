// The page: its header, its views by the address behind #, and what it says when the server is gone.

import { h, setClass, setText, show } from "./dom.js";
import { Feed } from "./feed.js";
import { span } from "./format.js";
import { MetricsView } from "./metrics.js";
import { ModelView } from "./model.js";
import { Overview, pill } from "./overview.js";

const feed = new Feed("status");
const main = document.getElementById("main");
const connection = document.getElementById("connection");
let view = null;
let shown = "";

function parts() {
  return location.hash.replace(/^#\/?/, "").split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
}

function open() {
  const [kind, name, version] = parts();
  if (shown === location.hash && view) return;
  shown = location.hash;
  view?.close?.();
  if (kind === "model" && name) view = new ModelView(feed, name, version ?? "");
  else if (kind === "metrics") view = new MetricsView(feed);
  else view = new Overview(feed);
  main.replaceChildren(view.element);
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.dataset.view === (kind === "metrics" ? "metrics" : "overview");
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = kind === "model" && name ? `${name} · Whet` : kind === "metrics" ? "Metrics · Whet" : "Whet";
  window.scrollTo(0, 0);
  view.update();
}

// The header

const state = pill();
const uptime = h("span", { class: "hint" });
document.getElementById("server").append(state.element, uptime);

function serverState(latest) {
  if (feed.lost) return { text: "no connection", tone: "bad" };
  if (!latest.live) return { text: "not live", tone: "bad" };
  if (latest.draining) return { text: "draining", tone: "busy" };
  if (latest.loading) return { text: "starting", tone: "busy" };
  return latest.ready ? { text: "ready", tone: "good" } : { text: "not ready", tone: "bad" };
}

function updateHeader() {
  const { latest } = feed;
  if (!latest) {
    if (feed.lost) state.update({ text: "no connection", tone: "bad" });
    return;
  }
  state.update(serverState(latest));
  setText(uptime, feed.lost ? "" : `up ${span(latest.uptime_s)}`);
}

// What the server is, at the foot

const footer = document.getElementById("footer");
const about = h("span");
const ports = h("span", { class: "ports" });
footer.append(about, ports);

function updateFooter() {
  const { latest } = feed;
  if (!latest) return;
  const mode = { none: "models are loaded at start", poll: "the repository is followed", explicit: "models are loaded on demand" };
  setText(about, `Whet ${latest.version}${latest.tls ? ", TLS" : ""} · ${latest.live ? "live" : "not live"} · ${mode[latest.control_mode] ?? latest.control_mode}`);
  setText(ports, Object.entries(latest.ports).map(([name, port]) => `${name} ${port ?? "closed"}`).join(" · "));
}

// The connection

function updateConnection() {
  const isLost = Boolean(feed.lost);
  setClass(document.body, "lost", isLost);
  if (isLost) {
    const when = feed.lastAnswer ? ` These figures are ${span((Date.now() - feed.lastAnswer) / 1000)} old.` : "";
    if (!connection.firstChild) connection.append(h("div", { class: "banner" }));
    setText(connection.firstChild, `The connection to the server is lost: ${feed.lost}. Trying again each second.${when}`);
  } else connection.replaceChildren();
}

// Light and dark

const THEMES = ["auto", "light", "dark"];
const button = document.getElementById("theme");

function theme() {
  try {
    return localStorage.getItem("whet-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function applyTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  setText(button, { auto: "Auto", light: "Light", dark: "Dark" }[name] ?? "Auto");
  button.setAttribute("aria-label", `Colours: ${name}. Change.`);
}

button.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  try {
    localStorage.setItem("whet-theme", next);
  } catch { /* the choice lasts as long as the page */ }
  applyTheme(next);
});

applyTheme(theme());
// The address behind # is the view's: the link may not change it.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
const waiting = h("p", { class: "empty" }, "Waiting for the server.");
main.replaceChildren(waiting);
window.addEventListener("hashchange", () => feed.latest && open());
feed.subscribe(() => {
  updateHeader();
  updateFooter();
  updateConnection();
  show(waiting, !feed.latest);
  if (!feed.latest) return;
  if (!view) open();
  else view.update();
});
feed.start();
