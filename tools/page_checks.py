"""What is wrong with an opened page, as a list of sentences.

Each check is a small script that runs in the page and returns the problems that it sees: charts that are not drawn,
equations that are not typeset, a page wider than its window, images without words, text too faint to read.
"""

from playwright.sync_api import Page

CHARTS = """() => [...document.querySelectorAll(".opd-chart")].flatMap((box, index) => {
  const name = `chart ${index + 1} (${box.getAttribute("aria-label") || "without description"})`;
  if (box.dataset.state !== "live") return [`${name}: not drawn (state ${box.dataset.state})`];
  const svg = box.querySelector(".opd-chart-live svg");
  const marks = svg ? [...svg.querySelectorAll(".role-mark path, .role-mark line, .role-mark text, .role-mark image")] : [];
  const visible = marks.filter((mark) => { const b = mark.getBoundingClientRect(); return b.width + b.height > 0; });
  const problems = [];
  if (!visible.length) problems.push(`${name}: drawn without a single visible mark`);
  if (box.scrollWidth > box.clientWidth + 1) problems.push(`${name}: ${box.scrollWidth} px in ${box.clientWidth} px`);
  if (!box.querySelector("img").alt.trim()) problems.push(`${name}: its image has no alternative text`);
  if (svg && /NaN|undefined/.test(svg.outerHTML)) problems.push(`${name}: NaN or undefined in the drawing`);
  return problems;
})"""

EQUATIONS = """() => [...document.querySelectorAll(".math")].flatMap((element) => {
  const source = element.textContent.slice(0, 60);
  if (!element.querySelector("mjx-container")) return [`equation not typeset: ${source}`];
  const wrong = element.querySelector("mjx-merror, [data-mjx-error]");
  return wrong ? [`equation in error: ${wrong.getAttribute("data-mjx-error") || wrong.textContent}`] : [];
})"""

OVERFLOW = """() => {
  const page = document.documentElement;
  if (page.scrollWidth <= window.innerWidth) return [];
  const clipped = (element) => {
    for (let up = element.parentElement; up; up = up.parentElement) {
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(up).overflowX) && up !== document.body) return true;
    }
    return false;
  };
  const wide = [...document.body.querySelectorAll("*")].filter(
    (element) => element.getBoundingClientRect().right > window.innerWidth + 1 && !clipped(element));
  const names = wide.slice(0, 3).map((element) => `${element.tagName.toLowerCase()}.${element.className}`);
  return [`the page is ${page.scrollWidth} px wide in a window of ${window.innerWidth} px: ${names.join(", ")}`];
}"""

IMAGES = """() => [...document.querySelectorAll("img")].flatMap((image) => {
  const problems = [];
  const shown = image.getClientRects().length > 0;
  if (shown && image.complete && !image.naturalWidth) problems.push(`broken image: ${image.src.slice(0, 80)}`);
  // a logo beside its own words is decoration and may be silent; a picture in the text may not
  if (!image.alt.trim() && image.closest("article")) problems.push(`image without alternative text: ${image.src.slice(0, 80)}`);
  return problems;
})"""

#: WCAG contrast of 4.5 for text on its background: paragraphs, and every label in a chart.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => { const s = v / 255; return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (let up = element; up; up = up.parentElement) {
      const colour = parse(getComputedStyle(up).backgroundColor);
      if (colour.length && (colour.length < 4 || colour[3] > 0.5)) return colour;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const texts = [...document.querySelectorAll(".bd-article p, .bd-article li, .bd-article td, .bd-article th, nav.bd-links a")];
  const labels = [...document.querySelectorAll(
    ".opd-chart-live .role-axis-label text, .opd-chart-live .role-axis-title text, .opd-chart-live .role-legend text, "
    + ".opd-chart-live .role-title text")];
  const seen = new Map();
  for (const [element, colour] of [
    ...texts.map((e) => [e, getComputedStyle(e).color]), ...labels.map((e) => [e, getComputedStyle(e).fill])]) {
    const words = element.textContent.trim();
    if (!words || !element.getClientRects().length) continue;
    const found = ratio(parse(colour), behind(element));
    if (found < 4.5) seen.set(colour, `contrast ${found.toFixed(2)} of "${words.slice(0, 40)}" (${colour})`);
  }
  return [...seen.values()];
}"""

CHECKS = {"charts": CHARTS, "equations": EQUATIONS, "overflow": OVERFLOW, "images": IMAGES, "contrast": CONTRAST}


def page_problems(page: Page) -> list[str]:
    """Run every check in the page and return what they found."""
    return [problem for script in CHECKS.values() for problem in page.evaluate(script)]
