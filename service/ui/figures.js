// An image beside what the model sees of it.

import { cropOf } from "./crop.js";
import { element } from "./dom.js";

/** Two figures: the whole image, what lies outside the square darkened, and the square in the model's own pixels. */
export function buildFigures(file, url, preprocess) {
  const image = element("img", { src: url, alt: file.name });
  const share = preprocess.size / (preprocess.resize.shorter_side ?? preprocess.size);
  const square = element("span", { class: "square" });
  square.style.setProperty("--share", share);
  const whole = element("span", { class: "whole" }, image, square);
  const measure = element("figcaption", {});
  image.addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = image;
    whole.classList.add(width > height ? "wide" : "tall");
    measure.textContent = `${width} × ${height}`;
  });
  image.addEventListener("error", () => whole.replaceWith(none()));
  const seen = element("figure", {}, element("span", { class: "seen" }));
  showCrop(file, preprocess, seen);
  return element("div", { class: "figures" }, element("figure", {}, whole, measure), seen);
}

async function showCrop(file, preprocess, figure) {
  const { size } = preprocess;
  const caption = element("figcaption", {}, `The model sees ${size} × ${size}`);
  try {
    const canvas = await cropOf(file, preprocess);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `What the model sees: ${size} × ${size} pixels`);
    canvas.className = "seen";
    figure.replaceChildren(canvas, caption);
  } catch {
    figure.replaceChildren(none(), caption);
  }
}

const none = () => element("span", { class: "seen none" }, "This browser cannot show it");
