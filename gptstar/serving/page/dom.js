// Elements, without markup in strings: what models write is only ever text.

export const find = (id) => document.getElementById(id);

// make("p", {class: "note", onclick: f}, "text", element): undefined, null and false attributes are left out.
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// 2578336 -> 2.6 million
export function rounded(value) {
  const units = [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]];
  const unit = units.find(([size]) => value >= size);
  return unit ? `${+(value / unit[0]).toPrecision(value / unit[0] >= 100 ? 3 : 2)} ${unit[1]}` : number(value);
}

// For this browser, where it lets a page keep anything.
export const kept = {
  get(name, storage = "localStorage") { try { return window[storage].getItem(name); } catch { return null; } },
  set(name, value, storage = "localStorage") { try { window[storage].setItem(name, value); } catch { /* not kept */ } },
};
