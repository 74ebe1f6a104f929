// What all images on the page cost together.

import { accurate, count, element, exitShare, gflops, percent, segments } from "./dom.js";

/** Nodes for the answers of `of` images, and a text of them to be spoken. */
export function buildSummary(pictures, model) {
  const answers = pictures.filter(({ answer }) => answer).map(({ answer }) => answer);
  if (!answers.length) return { nodes: [], text: "" };
  const cost = costOf(answers, model);
  const parts = [element("p", {}, element("b", {}, cost)), element("p", { class: "muted" }, expected(answers))];
  if (answers.length > 1) parts.splice(1, 0, exits(answers, model));
  const agreed = agreement(pictures);
  if (agreed) parts.push(element("p", { class: "muted" }, agreed));
  return { nodes: parts, text: [cost, expected(answers), agreed].filter(Boolean).join(" ") };
}

function costOf(answers, model) {
  const full = model.exits.at(-1).gflops;
  const mean = answers.reduce((total, each) => total + each.gflops, 0) / answers.length;
  return `${count(answers.length, "image")} at ${percent(mean / full)} of the full cost.`;
}

function expected(answers) {
  const { name, thresholds, expected_accuracy, standard_error, expected_gflops } = answers.at(-1).operating_point;
  const point = [name, "thresholds", thresholds.map((each) => each.toFixed(3)).join(", ")].filter(Boolean).join(" ");
  const what = `${accurate(expected_accuracy, standard_error)} accuracy, ${gflops(expected_gflops)} GFLOPs`;
  return `Expected on average: ${what} (${point}).`;
}

/** How many left at each exit. */
function exits(answers, model) {
  const parts = model.exits
    .map(({ exit }) => [answers.filter((each) => each.exit === exit).length, exit])
    .filter(([images]) => images)
    .map(([images, exit]) => exitShare(exit, images, `exit ${exit}: ${images}`));
  return segments("shares", parts);
}

/** How many would have another label at the last exit, once all were asked. */
function agreement(pictures) {
  const asked = pictures.filter(({ answer, every }) => answer && every);
  if (asked.length < 2 || asked.length < pictures.filter(({ answer }) => answer).length) return "";
  const kept = asked.filter(({ answer, every }) => answer.label === every.at(-1).label).length;
  return `With every stage run, ${kept} of ${count(asked.length, "image")} would keep the label.`;
}
