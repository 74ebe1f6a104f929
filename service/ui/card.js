// What an open card says about one image: why it left where it did, what each stage said, and where the time went.

import { element, extent, gflops, milliseconds, percent, segments, toldApart } from "./dom.js";

const AND = new Intl.ListFormat("en", { type: "conjunction" });

/**
 * The parts of a card for a line of the stream. `every` has what each exit says, once it was asked; until then
 * `button` is there to ask.
 */
export function buildAnswer(line, every, model, button) {
  const busy = line.degraded ? " The service is overloaded and uses a cheaper operating point (brown-out)." : "";
  const why = element("p", { class: "why" }, reasonOf(line) + busy);
  const full = model.exits.at(-1).gflops;
  const cost = element("p", { class: "muted" }, `${gflops(line.gflops)} of ${gflops(full)} GFLOPs`);
  const details = element("div", { class: "details" }, classes(line), time(line));
  return {
    verdict: element("div", { class: "verdict" }, why, costBar(line, model), cost),
    rest: [stages(line, every, model), others(line, every, button), details],
  };
}

/** Why the image left where it did, in a sentence or two. */
export function reasonOf(line) {
  const { exit, exits, reason, score } = line;
  if (reason === "goes_on") return `The score at exit ${exit} is below the threshold; going on to stage ${exit + 1}.`;
  if (reason === "expired") return "No exit was reached by the deadline.";
  if (reason === "final") return `No earlier exit reached its threshold, so all ${exits} stages ran, at the full cost.`;
  const because = {
    confident: () => reached(exit, score, line.operating_point.thresholds[exit - 1]),
    max_exit: () => `The request allows no stage after exit ${exit}`,
    deadline: () => `The deadline left no time for a stage after exit ${exit}`,
  }[reason]();
  const unrun = Array.from({ length: exits - exit }, (_, k) => exit + 1 + k);
  const [noun, verb] = unrun.length === 1 ? ["stage", "was"] : ["stages", "were"];
  return `${because}, so ${noun} ${AND.format(unrun.map(String))} ${verb} not run.`;
}

function reached(exit, score, threshold) {
  if (threshold === 0) return `With a threshold of 0, every image leaves at exit ${exit}`;
  const [came, needed] = toldApart(score, threshold);
  return `Score ${came} reached the threshold ${needed} at exit ${exit}`;
}

/** What the exits after the image's own would have said, in a sentence. */
export function dissentOf(line, every) {
  const later = every.slice(line.exit);
  const other = later.filter(({ label }) => label !== line.label);
  if (!other.length) {
    const who = later.length === 1 ? `Exit ${later[0].stage}, the last, says` : "All later exits say";
    return `${who} ${line.label} too: stopping here changed nothing.`;
  }
  const said = other.map(({ stage, label, confidence }) => `exit ${stage} says ${label} (${percent(confidence)})`);
  return `Later exits disagree: ${AND.format(said)}.`;
}

function others(line, every, button) {
  if (!line.final || line.exit === null || line.exit === line.exits) return "";
  if (!every) return element("p", { class: "others" }, button);
  return element("p", { class: "others", tabindex: -1 }, dissentOf(line, every));
}

/** GFLOPs of each stage alone. */
const stageCosts = (model) => model.exits.map(({ gflops }, k) => gflops - (k ? model.exits[k - 1].gflops : 0));

/** A bar of the full cost, the stages that ran filled. */
export function costBar(line, model) {
  const parts = stageCosts(model).map((each, k) => [each, "", k < line.stages.length ? "ran" : "unrun"]);
  return segments("bar", parts);
}

function stages(line, every, model) {
  const thresholds = line.operating_point?.thresholds ?? [];
  const full = model.exits.at(-1).gflops;
  const items = stageCosts(model).map((each, k) => {
    const said = line.stages[k] ?? (line.final ? every?.[k] : undefined);
    const state = !line.stages[k] ? "unrun" : k + 1 === line.exit && line.reason !== "goes_on" ? "left" : "on";
    const name = element("b", {}, `Stage ${k + 1}`);
    const title = element("span", { class: "stage-title" }, name, `${percent(each / full)} of the cost`);
    const unrun = element("span", { class: "muted" }, line.final ? "not run" : "not run yet");
    return element("li", { class: `stage ${state}` }, title, ...(said ? report(said, thresholds[k], state) : [unrun]));
  });
  return element("ol", { class: "stages", "aria-label": "Stages" }, ...items);
}

function report(said, threshold, state) {
  const fill = element("span", { class: "fill", style: { width: extent(said.score) } });
  const track = element("span", { class: "track" }, fill);
  let comparison = `score ${said.score.toFixed(3)}${threshold === undefined ? ", last stage" : ""}`;
  if (threshold !== undefined) {
    const [score, needed] = toldApart(said.score, threshold);
    comparison = `score ${score} ${said.score >= threshold ? "≥" : "<"} ${needed} threshold`;
    track.append(element("span", { class: "threshold", style: { left: extent(threshold) } }));
  }
  const verdict = { left: "left here", on: "went on", unrun: "would have said" }[state];
  const says = element("span", { class: "says" }, said.label, element("span", { class: "verdict-of-stage" }, verdict));
  return [says, track, element("span", { class: "muted" }, comparison)];
}

function classes(line) {
  const rows = line.top_k.map(({ label, probability }) => row(label, probability, percent(probability, 1), ["fill"]));
  return element("section", {}, element("h4", {}, "Most likely"), element("dl", { class: "rows" }, ...rows.flat()));
}

function time(line) {
  const inStages = line.stages.reduce((total, each) => total + each.queue_ms + each.compute_ms, 0);
  const total = line.latency_ms;
  const before = Math.max(0, total - inStages);
  const rows = [row("Receive and decode", before / total, milliseconds(before), ["fill", "other"])];
  for (const { stage, queue_ms, compute_ms, batch_size } of line.stages) {
    rows.push(row(`Stage ${stage}: queue`, queue_ms / total, milliseconds(queue_ms), ["fill", "other"]));
    rows.push(row(`Stage ${stage}: batch of ${batch_size}`, compute_ms / total, milliseconds(compute_ms), ["fill"]));
  }
  const title = element("h4", {}, `Time: ${milliseconds(total)}`);
  return element("section", {}, title, element("dl", { class: "rows" }, ...rows.flat()));
}

function row(name, share, text, kinds) {
  const fill = element("span", { class: kinds.join(" "), style: { width: extent(share) } });
  const bar = element("span", { class: "track" }, fill);
  return [element("dt", {}, name), element("dd", {}, bar, element("span", { class: "number" }, text))];
}
