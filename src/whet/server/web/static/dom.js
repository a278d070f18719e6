// Elements without markup: every text that comes from the server goes in as a text node.

const SVG = "http://www.w3.org/2000/svg";

// Make an element. `props`: attributes; `class`; `on` with listeners; `prop` with properties. Children: nodes or texts.
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "prop") Object.assign(element, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}

// Change a text only where it differs: selections and screen readers are left alone.
export function setText(element, text) {
  const next = String(text);
  if (element.textContent !== next) element.textContent = next;
}

export function setClass(element, name, on) {
  if (element.classList.contains(name) !== on) element.classList.toggle(name, on);
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

// Make the children of `parent` those of `items`, in order, keeping the elements of the keys that were there before.
// `make(item)` returns { element, update(item) }.
export function keep(parent, items, key, make) {
  const old = parent.kept ?? new Map();
  const next = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const id = key(item);
    const part = old.get(id) ?? make(item);
    next.set(id, part);
    part.update(item);
    if (part.element === place) place = place.nextSibling;
    else parent.insertBefore(part.element, place);
  }
  for (const [id, part] of old) if (next.get(id) !== part) part.element.remove();
  parent.kept = next;
}

// A label and its control, for forms.
export function field(label, control, hint = "") {
  return h("label", { class: "field" }, h("span", { class: "name" }, label), control, hint && h("span", { class: "hint" }, hint));
}

let notices = 0;

// Say something at the foot of the page for a while; errors stay until they are closed.
export function notice(text, isError = false) {
  const place = document.getElementById("notices");
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close this message" }, "×");
  const box = h("div", { class: isError ? "notice bad" : "notice", "data-id": ++notices }, h("span", {}, text), close);
  close.addEventListener("click", () => box.remove());
  place.append(box);
  while (place.children.length > 4) place.firstChild.remove();
  if (!isError) setTimeout(() => box.remove(), 6000);
}
