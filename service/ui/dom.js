// Building elements and formatting numbers. Text only ever becomes a text node, so it cannot inject markup.

/** An element with attributes (`style`: an object of CSS properties) and children (nodes or text). */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
export function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") {
      for (const [property, setting] of Object.entries(value)) node.style.setProperty(property, setting);
    } else {
      node.setAttribute(name, value);
    }
  }
  node.append(...children);
  return node;
}

/** A share of 1 as `53 %`. */
export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

/** An accuracy with its standard error in points, as `89.2 % ± 0.4`. */
export const accurate = (share, error) => `${percent(share, 1)} ± ${(100 * error).toFixed(1)}`;

/** A share of 1, and no more, as a CSS length. */
export const extent = (share) => `${100 * Math.min(1, Math.max(0, share))}%`;

/** GFLOPs with three significant digits. */
export const gflops = (value) => value.toPrecision(3);

/** Milliseconds. */
export const milliseconds = (value) => `${value.toFixed(1)} ms`;

/** `1 image`, `2 images`. */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** Two numbers with enough digits to look different if they are. */
export function toldApart(one, other) {
  for (let digits = 3; ; digits += 1) {
    const texts = [one.toFixed(digits), other.toFixed(digits)];
    if (texts[0] !== texts[1] || digits === 8) return one === other ? [one.toFixed(3), other.toFixed(3)] : texts;
  }
}

/** A row of segments as wide as their values, each [value, text or "", class]. */
export function segments(kind, parts) {
  const whole = parts.reduce((total, [value]) => total + value, 0);
  const part = ([value, text, name]) => element("span", { class: name, style: { "flex-grow": value / whole } }, text);
  return element("span", { class: kind }, ...parts.map(part));
}

/** A segment for the images that left at an exit; each of the first exits has a tone of its own. */
export const exitShare = (exit, images, text) => [images, text, `share share-${Math.min(Number(exit) || 4, 4)}`];
