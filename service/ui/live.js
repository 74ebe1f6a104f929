// The strip at the bottom: what the service does, from its metrics.

import { getMetrics } from "./api.js";
import { count, element, exitShare, percent, segments } from "./dom.js";

const SECONDS = 2;
const WINDOW_SECONDS = 60;

/** Keeps the strip up to date while the page is visible. */
export async function keepLive(strip) {
  const seen = []; // of the last minute, the oldest first: {when, samples}
  for (;;) {
    if (!document.hidden) {
      try {
        const when = performance.now() / 1000;
        const samples = await getMetrics();
        while (seen.length > 1 && seen[1].when <= when - WINDOW_SECONDS) seen.shift();
        strip.replaceChildren(...facts(samples, seen[0]?.samples ?? []));
        seen.push({ when, samples });
      } catch (error) {
        strip.replaceChildren(fact("Service", error.message));
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS));
  }
}

/** Nodes: what was counted since the page saw `earlier`, or since the service's start, if nothing was; what is now. */
export function facts(samples, earlier) {
  const recent = since(earlier, samples);
  const now = since([], samples);
  const isRecent = earlier.length && recent("msmlp_images_total") > 0;
  const [when, counted] = isRecent ? ["Last minute", recent] : ["Since its start", now];
  const answered = counted("msmlp_images_total");
  const [spent, saved] = [counted("msmlp_gflops_total"), counted("msmlp_gflops_saved_total")];
  const level = now("msmlp_brownout_level");
  return [
    fact(when, count(answered, "image")),
    fact("Compute saved", answered ? percent(saved / (spent + saved)) : "–"),
    fact("Left at exit", answered ? shares(samples, counted, answered) : "–"),
    fact("p50", quantile(0.5, samples, counted)),
    fact("p99", quantile(0.99, samples, counted)),
    fact("Images/s", now("msmlp_throughput_images_per_second").toLocaleString("en", { maximumFractionDigits: 1 })),
    fact("Queue", now("msmlp_queue_images").toLocaleString("en")),
    fact("Brown-out", level ? `level ${level}` : "off", level ? "fact alert" : "fact"),
  ];
}

/** A function (name, labels) → by how much the sum of all samples with these labels has grown. */
function since(earlier, samples) {
  const sum = (some, name, labels) => {
    const fits = (each) => Object.entries(labels).every(([label, value]) => each.labels[label] === value);
    return some.reduce((total, each) => total + (each.name === name && fits(each) ? each.value : 0), 0);
  };
  return (name, labels = {}) => sum(samples, name, labels) - sum(earlier, name, labels);
}

const values = (samples, name, label) =>
  new Set(samples.filter((each) => each.name === name).map(({ labels }) => labels[label]));

function shares(samples, counted, answered) {
  const exits = [...values(samples, "msmlp_images_total", "exit")];
  const parts = exits.map((exit) => [counted("msmlp_images_total", { exit }), exit]).filter(([images]) => images > 0);
  parts.sort(([, one], [, other]) => one.localeCompare(other, "en", { numeric: true }));
  const part = ([images, exit]) => exitShare(exit, images, `${exit}: ${percent(images / answered)}`);
  return segments("shares", parts.map(part));
}

/** A quantile of the time from arrival to an image's answer, from the histogram's buckets. */
function quantile(share, samples, counted) {
  const name = "msmlp_image_seconds_bucket";
  const finite = [...values(samples, name, "le")].filter((le) => le !== "+Inf");
  finite.sort((one, other) => Number(one) - Number(other));
  const below = finite.map((le) => counted(name, { le }));
  const rank = share * counted(name, { le: "+Inf" });
  if (!rank) return "–";
  const place = below.findIndex((images) => images >= rank);
  if (place < 0) return `> ${Number(finite.at(-1))} s`;
  const [low, before] = place ? [Number(finite[place - 1]), below[place - 1]] : [0, 0];
  const seconds = low + ((Number(finite[place]) - low) * (rank - before)) / (below[place] - before);
  return seconds < 1 ? `${Number((1000 * seconds).toPrecision(2))} ms` : `${seconds.toPrecision(2)} s`;
}

function fact(name, value, kind = "fact") {
  return element("div", { class: kind }, element("span", { class: "muted" }, name), element("b", {}, value));
}
