"use strict";
// The page's own script: the theme's switch, tables that sort, and the chart of losses.

(() => {
  const find = (id) => document.getElementById(id);

  function theme() {
    const button = find("theme");
    const choices = ["automatic", "light", "dark"];
    let kept = null;
    try { kept = localStorage.getItem("theme"); } catch { /* a browser may forbid it to files */ }
    let now = Math.max(0, choices.indexOf(kept));
    const show = () => {
      if (now) document.documentElement.dataset.theme = choices[now];
      else delete document.documentElement.dataset.theme;
      button.textContent = `Theme: ${choices[now]}`;
    };
    button.addEventListener("click", () => {
      now = (now + 1) % choices.length;
      try { localStorage.setItem("theme", choices[now]); } catch { /* then for this visit only */ }
      show();
    });
    button.hidden = false;
    show();
  }

  // Click on a head: ascending, then descending. What is no figure ("not reached") stays last either way.
  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const figure = (text) => parseFloat((text.match(/[+-]?\d[\d,.]*/) || [""])[0].replaceAll(",", ""));
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const text = (row) => row.cells[column].textContent;
        const order = (a, b) => {
          if (!head.classList.contains("number")) return (down ? -1 : 1) * text(a).localeCompare(text(b));
          const [x, y] = [figure(text(a)), figure(text(b))];
          if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
          return down ? y - x : x - y;
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }

  // An SVG element; children may be text.
  function make(name, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // Round numbers between two ends, about `count` of them.
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((n) => n * power >= rough);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n <= high / step + 1e-9; n++) found.push(n * step);
    return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
  }

  function powers(low, high) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      for (const n of [1, 2, 5]) if (n * 10 ** power >= low && n * 10 ** power <= high) found.push(n * 10 ** power);
    }
    return found;
  }

  // The value of a curve between its points; null before the first and after the last.
  function at(x, y, where) {
    const next = x.findIndex((each) => each >= where);
    if (next < 0 || y[next] === null) return null;
    if (x[next] === where) return y[next];
    if (next === 0 || y[next - 1] === null) return null;
    const share = (where - x[next - 1]) / (x[next] - x[next - 1]);
    return y[next - 1] + share * (y[next] - y[next - 1]);
  }

  function chart({ study, unit, look, axes, hidden }) {
    const plot = find("plot");
    const state = { axis: axes[0], log: false, seeds: false, off: new Set(), view: null, cursor: null };
    let frame = null; // what the last drawing used: places of its corners, scales, the layer of the crosshair

    const curveOf = (variant) => variant.curves[state.axis.key];
    const shown = () => study.variants.filter((variant, n) => curveOf(variant) && !state.off.has(n));
    const paint = (element, n) => {
      element.style.setProperty("--light", look[n].light);
      element.style.setProperty("--dark", look[n].dark);
      return element;
    };
    const forward = (x) => (state.log ? Math.log10(x) : x);
    const back = (u) => (state.log ? 10 ** u : u);

    // Ends of the horizontal axis, of all variants, so that hiding one moves nothing.
    function whole() {
      const all = study.variants.filter(curveOf).flatMap((variant) => curveOf(variant).x.filter((x) => x > 0));
      const last = Math.max(...all);
      return [state.log ? Math.min(...all, last / 10) : 0, last];
    }
    const view = () => state.view || whole();

    function heights([a, b]) {
      const start = back(forward(a) + hidden * (forward(b) - forward(a)));
      const found = [];
      for (const variant of shown()) {
        const { x, mean, low, high, lines } = curveOf(variant);
        const sides = [[x, mean], [x, low], [x, high]];
        if (state.seeds) sides.push(...lines.map((line) => [line.x, line.y]));
        for (const [xs, ys] of sides) {
          if (!ys) continue;
          found.push(at(xs, ys, start), at(xs, ys, b), ...ys.filter((_, n) => xs[n] >= start && xs[n] <= b));
        }
      }
      const real = found.filter((y) => y !== null);
      if (!real.length) return [0, 1];
      const [low, high] = [Math.min(...real), Math.max(...real)];
      const margin = 0.05 * (high - low) || 0.05;
      return [low - margin, high + margin];
    }

    function draw() {
      const width = Math.max(240, Math.round(plot.getBoundingClientRect().width));
      const height = width < 560 ? 300 : 440;
      const [left, right, top, bottom] = [52, width - 10, 28, height - 46];
      const [a, b] = view();
      const [low, high] = heights([a, b]);
      const sx = (x) => left + ((forward(x) - forward(a)) / (forward(b) - forward(a))) * (right - left);
      const sy = (y) => bottom - ((y - low) / (high - low)) * (bottom - top);
      plot.replaceChildren();
      plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.setAttribute("height", height);
      plot.append(
        make("clipPath", { id: "inside" }, make("rect", { x: left, y: top, width: right - left, height: bottom - top })),
        make("rect", { x: 0, y: 0, width, height, fill: "transparent" }),
      );
      drawAxes(a, b, low, high, sx, sy, { left, right, top, bottom, width, height });
      const curves = make("g", { "clip-path": "url(#inside)", id: "lines" });
      study.variants.forEach((variant, n) => {
        if (curveOf(variant) && !state.off.has(n)) curves.append(...drawCurve(variant, n, sx, sy));
      });
      const layer = make("g");
      plot.append(curves, layer);
      frame = { left, right, top, bottom, width, sx, sy, layer };
      drawCursor();
      find("reset").disabled = !state.view;
      plot.setAttribute("aria-label", `Validation loss against ${state.axis.name}, of ${shown().length} variants`);
    }

    function drawAxes(a, b, low, high, sx, sy, { left, right, top, bottom, width, height }) {
      const [rows, digits] = ticks(low, high, height < 400 ? 6 : 8);
      for (const y of rows) {
        plot.append(
          make("line", { class: "grid", x1: left, x2: right, y1: sy(y), y2: sy(y) }),
          make("text", { x: left - 8, y: sy(y) + 4, "text-anchor": "end" }, y.toFixed(digits)),
        );
      }
      const divisor = state.axis.divisor;
      const logarithmic = state.log && b / a > 5;
      const [columns, places] = ticks(a / divisor, b / divisor, width < 560 ? 4 : 8);
      const marks = logarithmic ? powers(a / divisor, b / divisor) : columns;
      let edge = -Infinity; // labels keep their distance
      for (const x of marks) {
        const place = sx(x * divisor);
        const text = logarithmic ? String(+x.toPrecision(2)) : x.toFixed(places);
        plot.append(make("line", { class: "grid", x1: place, x2: place, y1: top, y2: bottom }));
        if (place - edge < 9 * text.length + 6) continue;
        edge = place;
        const anchor = place > right - 4 * text.length ? "end" : "middle";
        plot.append(make("text", { x: anchor === "end" ? right : place, y: bottom + 18, "text-anchor": anchor }, text));
      }
      plot.append(
        make("line", { class: "frame", x1: left, x2: right, y1: bottom, y2: bottom }),
        make("line", { class: "frame", x1: left, x2: left, y1: top, y2: bottom }),
        make("text", { x: 0, y: 14 }, `validation loss (${unit})`),
        make("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, state.axis.label),
      );
    }

    function drawCurve(variant, n, sx, sy) {
      const { x, mean, low, high, lines } = curveOf(variant);
      const points = (xs, ys) =>
        xs.map((each, i) => [each, ys[i]]).filter(([each, y]) => y !== null && (each > 0 || !state.log));
      const place = ([each, y]) => `${sx(each).toFixed(1)},${sy(y).toFixed(1)}`;
      const path = (pairs, end = "") => (pairs.length ? `M${pairs.map(place).join("L")}${end}` : "");
      const parts = [];
      if (low && high) {
        const band = path([...points(x, low), ...points(x, high).reverse()], "Z");
        parts.push(paint(make("path", { class: "band", d: band }), n));
      }
      if (state.seeds) {
        for (const line of lines) {
          const thin = make("path", { class: "stroke seed", d: path(points(line.x, line.y)) }, make("title"));
          thin.firstChild.textContent = line.name;
          parts.push(paint(thin, n));
        }
      }
      const dash = look[n].dash.join(" ");
      parts.push(paint(make("path", { class: "stroke mean", d: path(points(x, mean)), "stroke-dasharray": dash }), n));
      return parts;
    }

    // The crosshair, and every variant's value there in the legend; without one, the last values.
    function drawCursor() {
      const { left, right, top, bottom, sx, sy, layer } = frame;
      layer.replaceChildren();
      const x = state.cursor;
      if (x !== null) layer.append(make("line", { class: "cursor", x1: sx(x), x2: sx(x), y1: top, y2: bottom }));
      study.variants.forEach((variant, n) => {
        const curve = curveOf(variant);
        const value = find("legend").children[n].querySelector(".value");
        value.textContent = curve ? reading(curve, x === null ? curve.x[curve.x.length - 1] : x) : "no curve";
        const y = curve && x !== null && !state.off.has(n) ? at(curve.x, curve.mean, x) : null;
        if (y === null || sy(y) < top || sy(y) > bottom || sx(x) < left - 1 || sx(x) > right + 1) return;
        layer.append(paint(make("circle", { class: "point", cx: sx(x), cy: sy(y), r: 4.5 }), n));
      });
      find("where").textContent = x === null ? "At the end of each curve:" : `At ${position(x)}:`;
    }
    const position = (x) => `${+(x / state.axis.divisor).toPrecision(4)} ${state.axis.unit}`;
    function reading({ x, mean, low, high }, where) {
      const [value, from, to] = [mean, low, high].map((ys) => (ys ? at(x, ys, where) : null));
      if (value === null) return "-";
      return value.toFixed(4) + (from === null || to === null ? "" : ` (${from.toFixed(4)} to ${to.toFixed(4)})`);
    }

    // Where validations were, of the variants that are shown.
    function stops() {
      const [a, b] = view();
      const all = shown().flatMap((variant) => curveOf(variant).x.filter((x) => x >= a && x <= b));
      return [...new Set(all)].sort((x, y) => x - y);
    }
    function point(place) {
      const all = stops();
      const distance = (x) => Math.abs(frame.sx(x) - place);
      state.cursor = all.length ? all.reduce((best, x) => (distance(x) < distance(best) ? x : best)) : null;
      drawCursor();
    }
    function speak() {
      const lines = study.variants.filter((variant) => shown().includes(variant));
      const said = lines.map((variant) => `${variant.name}: ${reading(curveOf(variant), state.cursor)}`);
      find("spoken").textContent = state.cursor === null ? "" : `${position(state.cursor)}. ${said.join("; ")}`;
    }

    // Zoom. Places are horizontal ones in the drawing; u are positions on the axis, logarithmic where it is.
    const toU = (place) => {
      const [a, b] = view().map(forward);
      return a + ((place - frame.left) / (frame.right - frame.left)) * (b - a);
    };
    function show(from, to) {
      const [first, last] = whole().map(forward);
      const width = Math.max(Math.abs(to - from), (last - first) / 1000);
      if (width >= (last - first) * 0.999) state.view = null;
      else {
        const start = Math.min(Math.max(Math.min(from, to), first), last - width);
        state.view = [back(start), back(start + width)];
      }
      if (state.cursor !== null && (state.cursor < view()[0] || state.cursor > view()[1])) state.cursor = null;
      draw();
    }
    function scale(factor, around) {
      const [a, b] = view().map(forward);
      show(around - (around - a) * factor, around + (b - around) * factor);
    }
    const middle = () => {
      const [a, b] = view().map(forward);
      return state.cursor === null ? (a + b) / 2 : forward(state.cursor);
    };
    const reset = () => {
      state.view = null;
      draw();
    };

    function pointers() {
      const down = new Map(); // pointer: where it is now
      let start = null; // where a mouse went down, or what two fingers hold
      const place = (event) => {
        const box = plot.getBoundingClientRect();
        const inside = ((event.clientX - box.left) / box.width) * frame.width;
        return Math.min(Math.max(inside, frame.left), frame.right);
      };
      plot.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        down.set(event.pointerId, place(event));
        plot.setPointerCapture(event.pointerId);
        if (event.pointerType === "mouse") start = place(event);
        else if (down.size === 2) start = [...down.values()].map(toU);
        point(place(event));
      });
      plot.addEventListener("pointermove", (event) => {
        if (down.has(event.pointerId)) down.set(event.pointerId, place(event));
        if (Array.isArray(start) && down.size === 2) {
          const [p, q] = [...down.values()];
          const each = (start[1] - start[0]) / (Math.abs(q - p) < 1 ? 1 : q - p);
          const from = start[0] - (p - frame.left) * each;
          if (each > 0) show(from, from + (frame.right - frame.left) * each);
          return;
        }
        point(place(event));
        if (typeof start === "number") {
          const x = Math.min(start, place(event));
          const size = { x, y: frame.top, width: Math.abs(place(event) - start), height: frame.bottom - frame.top };
          frame.layer.append(make("rect", { class: "selected", ...size }));
        }
      });
      const up = (event) => {
        const from = start;
        down.delete(event.pointerId);
        start = null;
        if (event.type === "pointerup" && typeof from === "number" && Math.abs(place(event) - from) > 8) {
          show(toU(from), toU(place(event)));
        } else drawCursor();
      };
      plot.addEventListener("pointerup", up);
      plot.addEventListener("pointercancel", up);
      plot.addEventListener("pointerleave", (event) => {
        if (event.pointerType !== "mouse" || down.size) return;
        state.cursor = null;
        drawCursor();
      });
      plot.addEventListener("dblclick", reset);
      plot.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && document.activeElement !== plot) return; // the wheel belongs to the page
        event.preventDefault();
        const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
        scale(Math.exp(Math.max(-1, Math.min(1, pixels * 0.003))), toU(place(event)));
      }, { passive: false });
    }

    function keys() {
      plot.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const all = stops();
        const last = all.length - 1;
        const now = all.indexOf(state.cursor);
        const left = now < 0 ? last : Math.max(0, now - 1);
        const next = { ArrowLeft: left, ArrowRight: Math.min(last, now + 1), Home: 0, End: last }[event.key];
        if (next !== undefined && all.length) {
          state.cursor = all[next];
          drawCursor();
          speak();
        } else if (event.key === "+" || event.key === "=") scale(0.5, middle());
        else if (event.key === "-") scale(2, middle());
        else if (event.key === "0") reset();
        else if (event.key === "Escape") {
          state.cursor = null;
          drawCursor();
        } else return;
        event.preventDefault();
      });
    }

    function controls() {
      axes.forEach((axis) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = axis.name[0].toUpperCase() + axis.name.slice(1);
        button.setAttribute("aria-pressed", axis === state.axis);
        button.addEventListener("click", () => {
          for (const each of find("axes").children) each.setAttribute("aria-pressed", each === button);
          Object.assign(state, { axis, view: null, cursor: null });
          draw();
        });
        find("axes").append(button);
      });
      const toggle = (name, then) =>
        find(name).addEventListener("click", () => {
          state[name] = !state[name];
          find(name).setAttribute("aria-pressed", state[name]);
          then();
        });
      toggle("log", () => {
        state.cursor = null;
        reset();
      });
      toggle("seeds", draw);
      find("closer").addEventListener("click", () => scale(0.5, middle()));
      find("farther").addEventListener("click", () => scale(2, middle()));
      find("reset").addEventListener("click", reset);
    }

    function legend() {
      study.variants.forEach((variant, n) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        const dash = look[n].dash.join(" ");
        const sample = make("line", { class: "stroke", x1: 0, x2: 40, y1: 6, y2: 6, "stroke-dasharray": dash });
        const picture = make("svg", { width: 40, height: 12, "aria-hidden": "true" }, paint(sample, n));
        const name = document.createElement("span");
        name.className = "name";
        name.textContent = variant.name;
        const value = document.createElement("span");
        value.className = "value";
        button.append(picture, name, value);
        button.addEventListener("click", () => {
          const on = state.off.delete(n);
          if (!on) state.off.add(n);
          button.setAttribute("aria-pressed", on);
          draw();
        });
        find("legend").append(button);
      });
    }

    find("chart").hidden = false;
    controls();
    legend();
    pointers();
    keys();
    draw();
    addEventListener("resize", draw);
  }

  theme();
  document.querySelectorAll("table").forEach(sortable);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
  if (find("chart")) chart(JSON.parse(find("study").textContent));
})();
