/* What is wrong with the opened page, as a list of sentences. tools/look.py runs this in the page. */
() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  function charts() {
    return all(".opd-chart").flatMap((box, index) => {
      const name = `chart ${index + 1} (${box.getAttribute("aria-label") || "without description"})`;
      if (box.dataset.state !== "live") return [`${name}: not drawn (state ${box.dataset.state})`];
      const svg = box.querySelector(".opd-chart-live svg");
      const shapes = ["path", "line", "text", "image"].map((shape) => `.role-mark ${shape}`).join(", ");
      const visible = (svg ? all(shapes, svg) : []).filter((mark) => {
        const { width, height } = mark.getBoundingClientRect();
        return width + height > 0;
      });
      const problems = [];
      if (!visible.length) problems.push(`${name}: drawn without a single visible mark`);
      if (box.scrollWidth > box.clientWidth + 1) problems.push(`${name}: ${box.scrollWidth} px in ${box.clientWidth} px`);
      const drawn = svg ? svg.outerHTML.replace(/ aria-label="[^"]*"/g, "") : "";
      if (/NaN|undefined/.test(drawn)) problems.push(`${name}: NaN or undefined in the drawing`);
      return problems;
    });
  }

  function equations() {
    return all(".math").flatMap((element) => {
      if (!element.querySelector("mjx-container")) return [`equation not typeset: ${element.textContent.slice(0, 60)}`];
      const wrong = element.querySelector("mjx-merror, [data-mjx-error]");
      return wrong ? [`equation in error: ${wrong.getAttribute("data-mjx-error") || wrong.textContent}`] : [];
    });
  }

  function overflow() {
    const page = document.documentElement;
    const room = page.clientWidth; // innerWidth grows when a phone zooms out to fit
    if (page.scrollWidth <= room) return [];
    const clips = (element) => element !== document.body && getComputedStyle(element).overflowX !== "visible";
    const clipped = (element) => element && (clips(element) || clipped(element.parentElement));
    const wide = all("*", document.body).filter(
      (element) => element.getBoundingClientRect().right > room + 1 && !clipped(element.parentElement));
    const names = wide.slice(0, 3).map((element) => `${element.tagName.toLowerCase()}.${element.className}`);
    return [`the page is ${page.scrollWidth} px wide in a window of ${room} px: ${names.join(", ")}`];
  }

  function images() {
    return all("img").flatMap((image) => {
      const problems = [];
      const source = image.src.slice(0, 80);
      const shown = image.getClientRects().length > 0;
      if (shown && image.complete && !image.naturalWidth) problems.push(`broken image: ${source}`);
      // a logo beside its own words is decoration and may be silent; a picture in the text may not
      if (!image.alt.trim() && image.closest("article")) problems.push(`image without alternative text: ${source}`);
      return problems;
    });
  }

  /* WCAG contrast of at least 4.5 between text and what is behind it: prose, tables, navigation, labels of charts. */
  function contrast() {
    const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
    const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const behind = (element) => {
      for (let up = element; up; up = up.parentElement) {
        const colour = parse(getComputedStyle(up).backgroundColor);
        if (colour.length && (colour.length < 4 || colour[3] > 0.5)) return colour;
      }
      return [255, 255, 255];
    };
    const prose = ["p", "li", "td", "th"].map((tag) => `.bd-article ${tag}`).join(", ");
    const roles = ["axis-label", "axis-title", "legend-label", "legend-title", "title", "title-text"];
    const labels = roles.map((role) => `.opd-chart-live .role-${role} text`).join(", ");
    const texts = [
      ...all(`${prose}, nav.bd-links a`).map((element) => [element, getComputedStyle(element).color]),
      ...all(labels).map((element) => [element, getComputedStyle(element).fill]),
    ];
    const faint = new Map(); // one report for each colour
    for (const [element, colour] of texts) {
      const words = element.textContent.trim();
      if (!words || !element.getClientRects().length) continue;
      const found = ratio(parse(colour), behind(element));
      if (found < 4.5) faint.set(colour, `contrast ${found.toFixed(2)} of "${words.slice(0, 40)}" (${colour})`);
    }
    return [...faint.values()];
  }

  return [...charts(), ...equations(), ...overflow(), ...images(), ...contrast()];
}
