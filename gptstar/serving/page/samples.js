// A text that is being written, made of tokens that can be looked into.

import { make, number } from "./dom.js";

export const MOST_BITS = 12; // of surprise: the end of the colour scale
const SHOWN = { alone: 2000, several: 400 }; // characters of the prompt's end before each text
const REASONS = { length: null, end_of_text: "the model ended the text", stop: "stopped" };

const behind = new WeakMap(); // what the server said of the tokens of a piece of text
export const tokensOf = (piece) => behind.get(piece);
export const bits = (prob) => -Math.log2(Math.max(prob, 1e-12));

export class Sample {
  // asked: what gives this text alone; actions: {name on a button: function of this sample}; keep: told of its seed
  constructor(prompt, asked, several, actions, keep) {
    this.asked = asked;
    this.prompt = prompt;
    this.text = "";
    this.count = 0;
    this.running = true;
    this.waiting = []; // tokens whose text is not decided: parts of a character
    this.began = performance.now();
    const most = several ? SHOWN.several : SHOWN.alone;
    const shown = prompt.length > most ? "…" + prompt.slice(-most) : prompt;
    this.written = make("span", { class: "written" });
    this.facts = make("span");
    const seed = asked.temperature === 0 ? null : make("button",
      { type: "button", class: "again", title: "use this seed again", onclick: () => keep(asked.seed) }, `seed ${asked.seed}`);
    this.buttons = Object.entries(actions).map(([name, act]) =>
      make("button", { type: "button", onclick: (event) => act(this, event.currentTarget) }, name));
    this.element = make("article", { class: "sample running" },
      make("p", { class: "text", role: "group", "aria-label": "Text; arrow keys go from token to token" },
        make("span", { class: "given" }, shown), this.written),
      make("footer", {}, make("p", { class: "facts" }, seed, this.facts), make("div", { class: "tools" }, ...this.buttons)));
    this.tell();
  }

  add(event) {
    this.count += 1;
    this.waiting.push(event);
    if (event.text) this.piece(event.text);
    this.tell();
  }

  piece(text) {
    const tokens = this.waiting;
    this.waiting = [];
    this.text += text;
    const kind = text === "" ? "token end" : /^\n+$/.test(text) ? "token newline" : "token";
    const element = make("span", { class: kind, tabindex: this.written.firstChild ? -1 : 0 }, text);
    const surprise = tokens.reduce((sum, each) => sum + bits(each.token.prob), 0);
    element.style.setProperty("--surprise", Math.min(1, surprise / MOST_BITS).toFixed(3));
    behind.set(element, tokens);
    this.written.append(element);
  }

  end(event) {
    if (this.waiting.length) this.piece("");
    this.finish(REASONS[event.finish_reason]);
  }

  // Nothing more comes, for a reason in words.
  finish(reason) {
    if (!this.running) return;
    this.running = false;
    this.reason = reason;
    this.element.classList.remove("running");
    this.tell();
  }

  tell() {
    const seconds = (performance.now() - this.began) / 1000;
    const speed = this.count > 1 && seconds > 0.2 ? `${number(this.count / seconds)} a second` : null;
    const count = `${number(this.count)} ${this.count === 1 ? "token" : "tokens"}`;
    this.facts.textContent = [count, speed, this.reason].filter(Boolean).join(" · ");
  }
}
