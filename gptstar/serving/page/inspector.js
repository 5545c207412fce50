// What the model thought of a token: shown to whoever points at it, taps it or walks there with the arrow keys.

import { find, make } from "./dom.js";
import { bits, tokensOf } from "./samples.js";

const GLYPHS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
const visible = (text) => text.replace(/[ \n\t\r]/g, (each) => GLYPHS[each]) || "∅";

function percent(prob) {
  if (prob > 0 && prob < 1e-4) return "< 0.01 %";
  return `${(100 * prob).toFixed(prob < 0.01 ? 2 : 1)} %`;
}

let shown = null; // the piece of text that is looked into

export function build() {
  const results = find("results");
  const pieceOf = (event) => event.target.closest(".token");
  results.addEventListener("pointerover", (event) => show(pieceOf(event)));
  results.addEventListener("pointerleave", hide);
  results.addEventListener("focusin", (event) => show(pieceOf(event)));
  results.addEventListener("focusout", hide);
  results.addEventListener("keydown", walk);
  addEventListener("scroll", () => { if (shown) place(find("inspector"), shown); }, { passive: true });
}

export function hide() {
  find("inspector").hidden = true;
  shown?.removeAttribute("aria-describedby");
  shown = null;
}

function walk(event) {
  const piece = event.target.closest(".token");
  if (!piece) return;
  const ends = { Home: piece.parentElement.firstChild, End: piece.parentElement.lastChild };
  const steps = { ArrowLeft: piece.previousSibling, ArrowRight: piece.nextSibling, ...ends };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const next = steps[event.key] ?? piece;
  piece.tabIndex = -1;
  next.tabIndex = 0;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function show(piece) {
  hide();
  const tokens = piece && tokensOf(piece);
  if (!tokens) return;
  const inspector = find("inspector");
  inspector.replaceChildren(...tokens.map((each, number) => block(each, number, tokens.length)),
    make("p", { class: "basis" }, "before temperature, filters and penalties"));
  inspector.hidden = false;
  shown = piece;
  piece.setAttribute("aria-describedby", "inspector");
  place(inspector, piece);
}

function block({ token, top }, number, count) {
  const listed = top.some((each) => each.id === token.id);
  const rows = listed || !top.length ? top : [...top, token];
  return make("div", { class: "choice" },
    count > 1 ? make("p", { class: "part" }, `part ${number + 1} of ${count} of what is shown`) : null,
    make("p", { class: "chosen" }, make("code", {}, visible(token.text)), make("span", {},
      `${percent(token.prob)}, ${bits(token.prob).toFixed(1)} bits`)),
    make("ol", {}, ...rows.map((each) => row(each, each.id === token.id))));
}

function row({ text, prob }, chosen) {
  const bar = make("i", { "aria-hidden": "true" });
  bar.style.setProperty("--share", prob);
  return make("li", { class: chosen ? "taken" : null },
    make("code", {}, visible(text)), bar, make("span", {}, percent(prob)));
}

// Below the token, above it where there is no room, and never outside the window.
function place(inspector, piece) {
  const at = piece.getClientRects()[0] ?? piece.parentElement.getBoundingClientRect();
  const { width, height } = inspector.getBoundingClientRect();
  const [across, down] = [document.documentElement.clientWidth, innerHeight];
  const below = at.bottom + 8 + height <= down || at.top < height + 8;
  inspector.style.left = `${Math.max(8, Math.min(at.left, across - width - 8))}px`;
  inspector.style.top = `${below ? at.bottom + 8 : at.top - height - 8}px`;
}
