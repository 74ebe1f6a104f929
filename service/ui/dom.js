// Building elements and formatting numbers. Text only ever becomes a text node, so it cannot inject markup.

/** An element with attributes (`style`: an object of CSS properties) and children (nodes or text). */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
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

/** An accuracy with its standard error in points, as `87.4 % ± 0.5`. */
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
