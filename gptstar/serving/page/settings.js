// The controls beside the prompt, what they ask of the server, and the links that hold all of it.

import { find, make } from "./dom.js";

const SAMPLERS = { "top-k": "Top-k", nucleus: "Nucleus", typical: "Typical", greedy: "Greedy" };
const USED = { "top-k": ["temperature", "k"], nucleus: ["temperature", "p"], typical: ["temperature", "tau"], greedy: [] };
const FIELDS = { tokens: "max_new_tokens", k: "top_k", p: "top_p", penalty: "repetition_penalty" };
const MOST_TOKENS = 1000;
const BIGGEST_SEED = Number.MAX_SAFE_INTEGER;

// name, what it is called, least, most, step, at first, what its end means
const SLIDERS = [
  ["tokens", "Tokens", 0, MOST_TOKENS, 1, 100, ""],
  ["temperature", "Temperature", 0, 2, 0.01, 0.85, "0: always the likeliest token"],
  ["k", "k", 0, 50, 1, 40, "the k likeliest tokens; 0: all of them"],
  ["p", "p", 0, 1, 0.01, 0.96, "likeliest tokens up to p; 0: one alone"],
  ["tau", "tau", 0, 1, 0.01, 0.2, "most typical ones up to tau; 0: one alone"],
];
const MORE = [
  ["penalty", "Repetition penalty", 1, 2, 0.01, 1, "of tokens that were there before; 1: none"],
  ["top", "Alternatives", 0, 10, 1, 8, "reported with each token"],
];
const NUMBERS = [...SLIDERS, ...MORE];

export function build() {
  const samplers = choices("sampler", "Sampler", Object.entries(SAMPLERS), "nucleus");
  const several = choices("n", "Samples", ["1", "2", "3", "4"].map((n) => [n, n]), "1");
  const seed = make("div", { class: "seed" },
    make("label", { for: "seed" }, "Seed"),
    make("input", { id: "seed", inputmode: "numeric", autocomplete: "off", placeholder: "a new one each time" }));
  const more = make("details", { class: "more" }, make("summary", {}, "More"), ...MORE.map(slider));
  find("controls").append(samplers, ...SLIDERS.map(slider), several, seed, more);
  find("controls").addEventListener("input", show);
  const wide = matchMedia("(min-width: 60rem)");
  const fold = () => { find("settings").open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
  show();
}

function choices(name, title, options, chosen) {
  return make("fieldset", { class: "choices", id: name }, make("legend", {}, title),
    ...options.map(([value, label]) => make("label", {},
      make("input", { type: "radio", name, value, checked: value === chosen }), make("span", {}, label))));
}

function slider([name, title, min, max, step, value, hint]) {
  const about = hint ? `${name}-about` : null;
  const range = make("input", { type: "range", id: name, min, max, step, value, "aria-describedby": about });
  const exact = make("input", { type: "number", min, max, step, value, "aria-label": `${title}, as a number` });
  range.addEventListener("input", () => { exact.value = range.value; });
  exact.addEventListener("input", () => { if (exact.value !== "") range.value = exact.value; });
  exact.addEventListener("change", () => { exact.value = range.value; });
  return make("div", { class: "slider" },
    make("label", { for: name }, title), exact, range, hint ? make("small", { id: about }, hint) : null);
}

const picked = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
const value = (name) => Number(find(name).value);

function set(name, wanted) {
  const range = find(name);
  range.value = wanted;
  range.previousElementSibling.value = range.value;
}

// What plays no part is inactive, and the short form for narrow screens says the rest.
function show() {
  const sampler = picked("sampler");
  for (const [name] of SLIDERS.slice(1)) {
    const off = !USED[sampler].includes(name);
    for (const input of find(name).parentElement.querySelectorAll("input")) input.disabled = off;
  }
  const certain = sampler === "greedy" || value("temperature") === 0;
  find("n").disabled = find("seed").disabled = certain;
  const used = USED[sampler].map((name) => `${name} ${value(name)}`);
  find("summary").textContent = [SAMPLERS[sampler], `${value("tokens")} tokens`, ...used].join(" · ");
}

export const setSeed = (seed) => { find("seed").value = seed; show(); };

// How many tokens and samples may be asked for at most.
export function limit(most, samples) {
  for (const input of find("n").querySelectorAll("input")) input.disabled = Number(input.value) > samples;
  for (const input of find("tokens").parentElement.querySelectorAll("input")) input.max = Math.min(MOST_TOKENS, most);
  set("tokens", value("tokens"));
  show();
}

// What to ask the server, but for model and prompt. Throws an Error with a line for the reader.
export function read() {
  const sampler = picked("sampler");
  const names = ["tokens", ...USED[sampler], "penalty", "top"];
  const asked = Object.fromEntries(names.map((name) => [FIELDS[name] ?? name, value(name)]));
  const certain = sampler === "greedy" || asked.temperature === 0;
  if (sampler === "greedy") asked.temperature = 0;
  const seed = find("seed").value.trim();
  if (!certain && seed !== "") {
    asked.seed = Number(seed);
    if (!/^-?\d+$/.test(seed) || Math.abs(asked.seed) > BIGGEST_SEED) {
      throw new Error(`seed=${seed} must be a whole number of at most ${BIGGEST_SEED}, or empty for a new one.`);
    }
  }
  return { ...asked, n: certain ? 1 : Number(picked("n")) };
}

// The part of an address behind # that holds what was asked: {model, prompt, ...}; other: the model beside it.
export function link(asked, other) {
  const sampler = "top_k" in asked ? "top-k" : "top_p" in asked ? "nucleus" : "tau" in asked ? "typical" : "greedy";
  const held = { prompt: asked.prompt, model: asked.model, ...(other && { with: other }), sampler };
  for (const name of ["tokens", ...USED[sampler], "penalty"]) held[name] = asked[FIELDS[name] ?? name];
  return "#" + new URLSearchParams({ ...held, n: asked.n, seed: asked.seed });
}

// Sets the controls as a link says; {prompt, model, with} of it, or null where it is none.
export function follow(hash) {
  const held = Object.fromEntries(new URLSearchParams(hash.slice(1)));
  if (held.prompt === undefined) return null;
  for (const [name] of NUMBERS) if (name in held) set(name, held[name]);
  for (const name of ["sampler", "n"]) {
    const input = [...find(name).querySelectorAll("input")].find((each) => each.value === held[name]);
    if (input) input.checked = true;
  }
  setSeed(held.seed ?? "");
  return held;
}
