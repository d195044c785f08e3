/* Draws the book's charts: loads the vendored Vega once, fits each chart to its box, follows the page's theme.
   Without this script every chart stays what the page already holds: an image with its description. */
(() => {
  "use strict";

  const BASE = document.currentScript.src.replace(/[^/]*$/, "");
  const NARROW = 560; // CSS pixels: below, panels stack and legends move under the chart
  const ATTEMPTS = 6; // redraws to fit a chart of fixed panel widths

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

  function merge(into, from) {
    for (const [key, value] of Object.entries(from)) {
      into[key] = isObject(value) && isObject(into[key]) ? merge(into[key], value) : value;
    }
    return into;
  }

  function walk(node, visit) {
    if (Array.isArray(node)) node.forEach((item) => walk(item, visit));
    else if (isObject(node)) {
      visit(node);
      for (const [key, value] of Object.entries(node)) if (key !== "datasets" && key !== "data") walk(value, visit);
    }
  }

  /* The page's colours and typeface, from book.css. */
  function themeConfig() {
    const ink = css("--opd-chart-ink"), soft = css("--opd-chart-soft"), grid = css("--opd-chart-grid");
    return {
      background: "transparent",
      font: css("--opd-font-ui"),
      axis: { labelColor: soft, titleColor: ink, domainColor: grid, tickColor: grid, gridColor: grid,
              labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500 },
      legend: { symbolBaseFillColor: ink, symbolBaseStrokeColor: ink, labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
      title: { color: ink, anchor: "start", fontSize: 14, fontWeight: 600 },
      header: { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500 },
      text: { color: ink }, rule: { color: soft }, view: { stroke: "transparent" },
    };
  }

  /* Plain black and white in a chart mean "ink" and "paper": give them the theme's. */
  function recolour(node) {
    const swap = { black: css("--opd-chart-ink"), white: css("--opd-chart-paper") };
    for (const key of ["color", "fill", "stroke", "value"]) {
      if (typeof node[key] === "string" && swap[node[key]]) node[key] = swap[node[key]];
    }
  }

  function wrapped(text, characters) {
    const lines = [];
    for (const word of [].concat(text).join(" ").split(" ")) {
      const last = lines.length - 1;
      if (last >= 0 && (lines[last] + " " + word).length <= characters) lines[last] += " " + word;
      else lines.push(word);
    }
    return lines;
  }

  /* One column of panels, legends below, titles in lines that fit. */
  function stack(spec, width) {
    walk(spec, (node) => {
      if (node.concat || node.facet) node.columns = 1;
      for (const channel of Object.values(node.encoding || {})) {
        if (isObject(channel) && isObject(channel.legend)) {
          for (const key of ["orient", "columns"]) delete channel.legend[key];
        }
      }
      if (typeof node.width === "number" && node.width > 120) node.width = width - 70;
      if (typeof node.title === "string" && (node.mark || node.layer)) {
        node.title = { text: wrapped(node.title, width / 8) };
      } else if (isObject(node.title) && node.title.text) {
        node.title.text = wrapped(node.title.text, width / 8);
      }
    });
    const layout = { bottom: { direction: "vertical", anchor: "start" } }; // two legends stand one below the other
    const legend = { orient: "bottom", direction: "horizontal", columns: 2, labelLimit: width / 2 - 40, layout };
    const axis = { labelFontSize: 11, titleFontSize: 11.5 }, header = { labelFontSize: 11, titleFontSize: 11.5 };
    spec.config = merge(spec.config || {}, { legend, axis, header });
  }

  function shrink(spec, factor) {
    walk(spec, (node) => {
      if (typeof node.width === "number" && node.width > 60) node.width = Math.floor(node.width * factor);
    });
  }

  function prepared(box, width) {
    const spec = JSON.parse(box.querySelector(".opd-chart-spec").textContent);
    delete spec.background;
    spec.config = merge(spec.config || {}, themeConfig());
    walk(spec, recolour);
    if (width < NARROW) stack(spec, width);
    return spec;
  }

  async function embed(live, spec) {
    const dark = document.documentElement.dataset.theme === "dark";
    return window.vegaEmbed(live, spec, {
      mode: "vega-lite", renderer: "svg", actions: false, tooltip: { theme: dark ? "dark" : "light" },
    });
  }

  async function draw(box) {
    const live = box.querySelector(".opd-chart-live");
    live.hidden = false;
    const width = live.clientWidth;
    if (!width) { live.hidden = true; return; } // inside something folded: drawn when it opens
    const turn = (box.opdTurn = (box.opdTurn || 0) + 1);
    box.opdBoxWidth = box.clientWidth;
    box.opdTheme = document.documentElement.dataset.theme;
    try {
      const spec = prepared(box, width);
      for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
        if (box.opdView) { box.opdView.finalize(); box.opdView = null; }
        const result = await embed(live, spec);
        if (turn !== box.opdTurn) { result.finalize(); return; } // a newer drawing has begun
        box.opdView = result;
        const drawn = live.querySelector("svg").getBoundingClientRect().width;
        if (drawn <= width) break;
        if (attempt && width < NARROW) merge(spec.config, { legend: { columns: 1 } }); // it begins at the panel's edge
        shrink(spec, Math.max(0.5, (width / drawn) * 0.97));
      }
      box.dataset.state = "live";
      box.dataset.theme = box.opdTheme;
    } catch (error) {
      live.hidden = true;
      box.dataset.state = "failed";
      console.error("A chart could not be drawn; its image stays.", error);
    }
  }

  function load(source) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = source;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${source} did not load`));
      document.head.append(script);
    });
  }

  async function start() {
    const boxes = [...document.querySelectorAll(".opd-chart")];
    if (!boxes.length) return;
    try {
      if (!window.vegaEmbed) await load(`${BASE}vendor/vega/vega.js`); // a page of one file has it inside
      if (document.fonts) await document.fonts.ready; // labels are measured in the typeface they are drawn in
    } catch (error) {
      console.error("Vega did not load; the charts stay images.", error);
      return;
    }
    for (const box of boxes) await draw(box);

    let timer = 0;
    const redraw = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        const theme = document.documentElement.dataset.theme;
        for (const box of boxes) {
          const moved = box.clientWidth && box.clientWidth !== box.opdBoxWidth;
          if (moved || (box.opdView && box.opdTheme !== theme)) draw(box);
        }
      }, 120);
    };
    const resized = new ResizeObserver(redraw);
    boxes.forEach((box) => resized.observe(box));
    new MutationObserver(redraw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
