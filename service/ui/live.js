// The strip at the bottom: what the service has done since its start, from its metrics.

import { getMetrics } from "./api.js";
import { element, percent } from "./dom.js";

const SECONDS = 2;

/** Keeps the strip up to date while the page is visible. */
export async function keepLive(strip) {
  for (;;) {
    if (!document.hidden) {
      try {
        strip.replaceChildren(...facts(await getMetrics()));
      } catch (error) {
        strip.replaceChildren(fact("Service", error.message));
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS));
  }
}

function facts(samples) {
  const sum = (name) => samples.reduce((total, each) => total + (each.name === name ? each.value : 0), 0);
  const byExit = new Map();
  for (const { name, labels, value } of samples) {
    if (name === "msmlp_images_total") byExit.set(labels.exit, (byExit.get(labels.exit) ?? 0) + value);
  }
  const answered = sum("msmlp_images_total");
  const [spent, saved] = [sum("msmlp_gflops_total"), sum("msmlp_gflops_saved_total")];
  return [
    fact("Answered", answered.toLocaleString("en")),
    fact("Compute saved", answered ? percent(saved / (spent + saved)) : "–"),
    fact("Left at exit", answered ? shares(byExit, answered) : "–"),
  ];
}

function fact(name, value) {
  return element("div", { class: "fact" }, element("span", { class: "muted" }, name), element("b", {}, value));
}

function shares(byExit, answered) {
  const exits = [...byExit].filter(([, images]) => images);
  exits.sort(([one], [other]) => one.localeCompare(other, "en", { numeric: true }));
  const parts = exits.map(([exit, images]) => {
    const share = images / answered;
    return element("span", { class: "share", style: { "flex-grow": share } }, `${exit}: ${percent(share)}`);
  });
  return element("span", { class: "shares" }, ...parts);
}
