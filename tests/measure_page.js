// What a reader would see of the page that this runs in, as JSON for the frame around it.
const luminance = (c) => c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
const parts = (text) => (text.match(/[\d.]+/g) || []).map(Number);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const [r, g, b, a = 1] = parts(getComputedStyle(at).backgroundColor);
    if (a > 0.99) return [r, g, b];
  }
  return [255, 255, 255];
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const name = (element) => `${element.tagName}.${element.getAttribute("class") || ""}: ${element.textContent.trim().slice(0, 40)}`;
const seen = (element) => element.checkVisibility({ contentVisibilityAuto: true }) && !element.closest(".hidden");
const all = [...document.body.querySelectorAll("*")].filter((element) => !["SCRIPT", "STYLE"].includes(element.tagName));

const faint = [];
for (const element of all) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const shaded = element.closest('svg[aria-label="Scores after every stage"]'); // its texts stand on shades
  if (!own || shaded || !seen(element)) continue;
  const style = getComputedStyle(element);
  const colour = parts(element.closest("svg") ? style.fill : style.color).slice(0, 3);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const ratio = contrast(colour, behind(element));
  if (ratio < (large ? 3 : 4.5)) faint.push(`${ratio.toFixed(2)} ${name(element)}`);
}
const scrolls = (element) => element.closest(".scroll, pre, .hidden");
const outside = all.filter((element) => seen(element) && !scrolls(element) && !element.closest("svg"))
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 1).map(name);
const cut = all.filter((element) => element.matches(".scroll, pre") && seen(element))
  .filter((element) => element.scrollWidth > element.clientWidth + 1 && !["auto", "scroll"].includes(getComputedStyle(element).overflowX))
  .map(name);
const cutInPrint = all.filter((element) => element.matches(".scroll, table, pre") && seen(element))
  .filter((element) => element.getBoundingClientRect().left + element.scrollWidth > innerWidth + 1).map(name);
const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
const labels = [...document.querySelectorAll('svg[role="img"]')].map((element) => element.getAttribute("aria-label"));
const folds = [...document.querySelectorAll("details")];
parent.document.getElementById("told").textContent = JSON.stringify({
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  faint: [...new Set(faint)], outside, cut, cutInPrint,
  ground: getComputedStyle(document.body).backgroundColor,
  ran: window.ran,
  scripts: document.scripts.length,
  foreign: document.querySelectorAll("img, iframe, object, embed, link, form, base, [onerror], [onload], [onclick]").length,
  requests: performance.getEntriesByType("resource").map((entry) => entry.name),
  text: document.body.textContent,
  title: document.title,
  headings: [...document.querySelectorAll("h1, h2, h3, h4")].map((element) => Number(element.tagName[1])),
  unnamed: [...document.querySelectorAll("svg:not([aria-label]):not([aria-hidden])")].length,
  labels, doubled: ids.filter((id, k) => ids.indexOf(id) !== k),
  folds: folds.length,
  shown: folds.filter((fold) => [...fold.children].slice(1).some((part) => part.checkVisibility({ contentVisibilityAuto: true }) && part.getBoundingClientRect().height > 0)).length,
  wide: [...document.querySelectorAll(".scroll")].filter((element) => element.scrollWidth > element.clientWidth + 1).length,
});
