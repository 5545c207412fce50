// What each model is: facts, the drawing of a block, and for a run of ours how its loss fell.

import { draw, make, number, rounded } from "./dom.js";

const UNITS = [[1e9, "billion tokens"], [1e6, "million tokens"], [1e3, "thousand tokens"], [1, "tokens"]];
const HEIGHT = 230;
const EDGE = { left: 34, right: 8, top: 10, bottom: 36 };

// Curves that stand side by side share their axes.
export function cards(models) {
  const runs = models.map((model) => model.training).filter((training) => training?.tokens.length);
  const losses = runs.flatMap((run) => [...run.losses, ...run.validation_losses]);
  const most = Math.max(...runs.flatMap((run) => [...run.tokens, ...run.validation_tokens]));
  const range = { most, low: Math.min(...losses), high: Math.max(...losses) };
  return models.map((model) => card(model, range));
}

function card(model, range) {
  const title = model.link
    ? make("a", { href: model.link, rel: "noreferrer", target: "_blank" }, model.name)
    : model.name;
  const parts = [make("h2", {}, title)];
  const made = model.architecture;
  if (made) {
    parts.push(make("p", { class: "size" }, `${rounded(made.parameters)} parameters`));
    parts.push(make("pre", { class: "drawing", role: "img", "aria-label": `one block: ${made.block}` }, made.drawing));
    parts.push(make("dl", {}, ...facts(model).flatMap(([name, fact]) => [make("dt", {}, name), make("dd", {}, fact)])));
  } else {
    parts.push(make("p", { class: model.error ? "error" : "size" }, model.error ?? model.state));
  }
  if (model.training?.tokens.length) parts.push(curve(model.training, range));
  return make("article", { class: "card" }, ...parts);
}

function facts(model) {
  const made = model.architecture;
  const shared = made.key_value_heads < made.heads ? `, keys and values of ${made.key_value_heads}` : "";
  const longest = made.longest ? `, reads at most ${number(made.longest)}` : "";
  return [
    ["Layers", `${made.layers}, ${made.block.replaceAll("_", " ")}`],
    ["Width", `${number(made.width)}, feed-forward ${number(made.feedforward_width)}, ${made.activation}`],
    ["Heads", `${made.heads} of ${made.head_width} channels${shared}`],
    ["Context", `${number(made.context)} tokens in training${longest}`],
    ["Positions", made.positions.replaceAll("_", " ")],
    ["Vocabulary", `${number(made.vocabulary)} tokens`],
    ["Parameters", number(made.parameters)],
    ["Runs in", `${model.dtype} on ${model.device}`],
  ];
}

function curve(training, range) {
  const final = training.final_loss;
  const perByte = training.final_bits_per_byte;
  const ending = final === null ? "The run has no final validation." : `Final validation loss ${final.toFixed(3)}` +
    (perByte === null ? "" : ` (${perByte.toFixed(3)} bits a byte)`);
  const svg = draw("svg", { role: "img", "aria-label": `Training curve. ${ending}` });
  const figure = make("figure", {}, svg, make("figcaption", {},
    make("span", { class: "line training" }, "training"), make("span", { class: "line validation" }, "validation"),
    make("span", { class: "final" }, ending)));
  new ResizeObserver(() => { if (figure.clientWidth) plot(svg, training, range, figure.clientWidth); }).observe(figure);
  return figure;
}

function plot(svg, training, { most, low, high }, width) {
  const [size, unit] = UNITS.find(([each]) => most >= 2 * each) ?? UNITS.at(-1);
  const x = (tokens) => EDGE.left + (width - EDGE.left - EDGE.right) * (tokens / most);
  const y = (loss) => EDGE.top + (HEIGHT - EDGE.top - EDGE.bottom) * ((high - loss) / (high - low || 1));
  const path = (tokens, values) => tokens.map((each, i) =>
    `${i ? "L" : "M"}${x(each).toFixed(1)} ${y(values[i]).toFixed(1)}`).join("");
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("height", HEIGHT);
  svg.replaceChildren(
    ...ticks(low, high, 4).flatMap((tick) => [
      draw("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick) }),
      draw("text", { x: EDGE.left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)),
    ]),
    ...ticks(0, most / size, 4).map((tick) =>
      draw("text", { x: x(tick * size), y: HEIGHT - 18, "text-anchor": "middle" }, String(tick))),
    draw("text", { x: width - EDGE.right, y: HEIGHT - 3, "text-anchor": "end" }, unit),
    draw("text", { x: EDGE.left, y: HEIGHT - 3 }, "loss in nats a token"),
    draw("path", { class: "training", d: path(training.tokens, training.losses) }),
    draw("path", { class: "validation", d: path(training.validation_tokens, training.validation_losses) }),
    ...training.validation_tokens.map((each, i) =>
      draw("circle", { class: "validation", r: 2.5, cx: x(each), cy: y(training.validation_losses[i]) })),
  );
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i += 1) found.push(+(i * step).toPrecision(6));
  return found;
}
