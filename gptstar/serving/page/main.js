// The page as a whole: models, prompt, who is writing, and what the address says.

import { cards } from "./cards.js";
import { find, kept, make } from "./dom.js";
import * as inspector from "./inspector.js";
import { Sample } from "./samples.js";
import { models, stream } from "./server.js";
import * as settings from "./settings.js";

const POLL = 1000; // milliseconds between questions while a model is read
const NEAR = 150; // pixels below the window's edge that still count as in sight

let known = [];
let limits = {};
let drawn = ""; // what the cards say
let running = null; // the AbortController of what is being written
let linked = null; // what a link asks for, until its models are ready
let last = null; // {asked, other} of the newest texts

const ready = (name) => known.some((model) => model.name === name && model.state === "ready");
const chosen = () => [find("model").value, find("other").value].filter(Boolean);
const say = (text) => { find("status").textContent = text; };

function complain(error, place = find("error")) {
  place.textContent = error?.message ?? "";
  place.hidden = !error;
  if (error?.status === 401) find("key").hidden = false;
}

// Models

async function refresh() {
  try {
    limits = await models();
    complain(null);
  } catch (error) {
    complain(error);
    if (error.status !== 401) setTimeout(refresh, 5 * POLL);
    return;
  }
  const first = !known.length;
  known = limits.models;
  if (first) offer();
  showModels();
  goThere();
  if (known.some((model) => ["waiting", "loading"].includes(model.state))) setTimeout(refresh, POLL);
}

function offer() {
  find("model").append(...known.map(({ name }) => make("option", {}, name)));
  find("other").append(make("option", { value: "" }, "none"), ...known.map(({ name }) => make("option", {}, name)));
  find("against").hidden = known.length < 2;
  open();
}

function showModels() {
  const names = chosen();
  const shown = known.filter((model) => names.includes(model.name));
  const told = JSON.stringify(shown);
  if (told !== drawn) find("cards").replaceChildren(...cards(shown));
  drawn = told;
  document.title = `${names.join(" and ")} – GPT*`;
  for (const option of find("other").options) option.disabled = option.value === find("model").value;
  const rooms = shown.filter((model) => model.most_tokens).map((model) => model.most_tokens - 1);
  settings.limit(Math.min(...rooms, limits.max_new_tokens ?? Infinity), limits.max_sequences);
  const failed = shown.find((model) => model.state === "failed");
  if (failed) complain(new Error(`${failed.name} could not be loaded: ${failed.error}`));
  const loading = failed ? undefined : shown.find((model) => model.state !== "ready");
  const waited = !find("progress").hidden;
  find("progress").hidden = !loading;
  if (loading) {
    find("progress").value = loading.progress;
    const share = loading.progress ? `, ${Math.round(100 * loading.progress)} %` : "";
    say(loading.state === "waiting" ? `${loading.name} waits for its turn to load` : `${loading.name} is loading${share}`);
  } else if (waited) {
    say("");
  }
  able();
}

function able() {
  find("generate").disabled = Boolean(running) || !chosen().length || !chosen().every(ready);
}

// Writing

// Writes what a link asks for, as soon as that is possible.
function goThere() {
  if (linked && !find("generate").disabled) generate();
}

async function generate() {
  if (find("generate").disabled) return;
  const following = linked !== null;
  linked = null;
  let asked;
  try {
    asked = { ...settings.read(), prompt: find("prompt").value };
  } catch (error) {
    complain(error);
    return;
  }
  complain(null);
  inspector.hide();
  const names = chosen();
  const [model, other] = names;
  // Both models get the same seed, so it is drawn here where nobody has set one.
  asked.seed ??= crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  last = { asked: { ...asked, model }, other };
  history.replaceState(null, "", settings.link(last.asked, other));
  const mine = running = new AbortController();
  switchButtons(true);
  say("Writing…");
  find("view").hidden = false;
  const panes = names.map((name) => new Pane(name, asked, names.length > 1));
  find("results").replaceChildren(...panes.map((pane) => pane.element));
  find("results").dataset.columns = names.length;
  if (!following) find("results").scrollIntoView({ block: "nearest" });
  const began = performance.now();
  await Promise.all(panes.map((pane) => pane.run(mine.signal)));
  running = null;
  switchButtons(false);
  const count = panes.reduce((sum, pane) => sum + pane.samples.reduce((all, each) => all + each.count, 0), 0);
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  say(panes.some((pane) => pane.failed) ? "" : `${mine.signal.aborted ? "Stopped" : "Done"}: ${count} tokens in ${seconds} s`);
  goThere();
}

// One model's texts, and what goes wrong with them.
class Pane {
  constructor(name, asked, titled) {
    this.asked = { ...asked, model: name };
    this.samples = [];
    this.failed = false;
    this.note = make("p", { class: "note", hidden: true });
    this.error = make("p", { class: "error", role: "alert", hidden: true });
    this.grid = make("div", { class: "samples" });
    this.grid.dataset.several = asked.n > 1;
    this.element = make("section", { class: "pane", "aria-label": name },
      titled ? make("h2", {}, name) : null, this.note, this.error, this.grid);
  }

  async run(signal) {
    try {
      await stream(this.asked, (event) => this.hear(event), signal);
    } catch (error) {
      this.failed = !signal.aborted;
      if (this.failed) complain(error, this.error);
      for (const sample of this.samples) sample.finish(signal.aborted ? "stopped by you" : "broken off");
    }
  }

  hear(event) {
    if (event.type === "start") this.start(event);
    else if (event.type === "token") this.samples[event.index].add(event);
    else this.samples[event.index].end(event);
    keepInSight();
  }

  start({ prompt, tokens, dropped, seeds }) {
    this.note.hidden = !dropped;
    this.note.textContent = `The prompt is too long: its first ${dropped} tokens were left out, ${tokens} were read.`;
    const actions = { "Continue": goOn, "Copy text": copyText, "Link": copyLink };
    this.samples = seeds.map((seed) =>
      new Sample(prompt, { ...this.asked, seed, n: 1 }, seeds.length > 1, actions, settings.setSeed));
    this.grid.append(...this.samples.map((sample) => sample.element));
  }
}

// Scrolls along while the text grows over the window's edge, but not for whoever has scrolled elsewhere.
let frame = 0;
function keepInSight() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const below = find("results").getBoundingClientRect().bottom + 16 - innerHeight;
    if (below > 0 && below < NEAR) scrollBy(0, below);
  });
}

function switchButtons(writing) {
  const [from, to] = writing ? [find("generate"), find("stop")] : [find("stop"), find("generate")];
  const focused = document.activeElement === from;
  find("stop").hidden = !writing;
  able();
  if (focused) to.focus();
}

function stop() {
  running?.abort();
}

// What can be done with a text

function goOn(sample) {
  find("prompt").value = sample.prompt + sample.text;
  find("model").value = sample.asked.model;
  showModels();
  find("prompt").focus();
  find("prompt").scrollTop = find("prompt").scrollHeight;
}

const copyText = (sample, button) => copy(sample.prompt + sample.text, button);
const copyLink = (sample, button) => copy(address(settings.link(sample.asked)), button);
const address = (hash) => location.href.replace(/#.*/, "") + hash;

async function copy(text, button) {
  const name = button.dataset.name ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => { button.textContent = name; }, 1500);
}

// The address

function open() {
  const held = settings.follow(location.hash);
  if (!held) return;
  const wanted = [held.model, held.with].filter(Boolean);
  const missing = wanted.find((name) => !known.some((model) => model.name === name));
  find("prompt").value = held.prompt;
  if (missing) {
    complain(new Error(`The link asks for the model ${missing}, which this server does not have.`));
    return;
  }
  find("model").value = held.model ?? known[0].name;
  find("other").value = held.with ?? "";
  linked = held;
}

// Views that are remembered

function remember(id) {
  const show = () => { document.documentElement.classList.toggle(id, find(id).checked); };
  find(id).checked = kept.get(id) === "yes";
  find(id).addEventListener("change", () => { kept.set(id, find(id).checked ? "yes" : "no"); show(); });
  show();
}

settings.build();
inspector.build();
remember("surprise");
remember("fixed");
find("generate").querySelector("kbd").textContent = /Mac|iP/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵";
find("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
find("stop").addEventListener("click", stop);
find("copy").addEventListener("click", (event) => copy(address(settings.link(last.asked, last.other)), event.currentTarget));
find("model").addEventListener("change", () => {
  if (find("other").value === find("model").value) find("other").value = "";
  showModels();
});
find("other").addEventListener("change", showModels);
find("open").addEventListener("click", () => {
  kept.set("key", find("secret").value, "sessionStorage");
  find("key").hidden = true;
  refresh();
});
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape") {
    inspector.hide();
    stop();
  }
});
addEventListener("hashchange", () => { stop(); open(); showModels(); goThere(); });
refresh();
