// The card of one image: its label, the exit it left at and why, the cost, and where the time went.

import { element, extent, gflops, milliseconds, percent, toldApart } from "./dom.js";

const AND = new Intl.ListFormat("en", { type: "conjunction" });

/** A card for a file; `show` takes a line of the stream, `fail` the reason for having none. */
export function buildCard(file, model) {
  const image = element("img", { src: URL.createObjectURL(file), alt: file.name, title: file.name });
  const body = element("div", { class: "answer" });
  const node = element("article", { class: "card", "aria-label": file.name }, image, body);
  const said = (kind, text) => body.replaceChildren(element("p", { class: kind }, text));
  return {
    node,
    wait: () => node.classList.add("waiting"),
    show(line) {
      node.classList.toggle("waiting", !line.final);
      body.replaceChildren(...answer(line, model));
    },
    fail(detail) {
      node.classList.remove("waiting");
      said("refused", `${file.name}: ${detail}`);
    },
    remove() {
      URL.revokeObjectURL(image.src);
      node.remove();
    },
  };
}

/** Why the image left where it did, in a sentence or two. */
export function why(line) {
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

function answer(line, model) {
  const busy = line.degraded ? " The service is overloaded and uses a cheaper operating point (brown-out)." : "";
  const label = element("h4", {}, line.label ?? "no answer");
  if (line.label !== null) label.append(element("small", {}, `${percent(line.confidence)} confident`));
  const head = element("div", { class: "verdict" }, label, element("p", { class: "why" }, why(line) + busy));
  const details = element("div", { class: "details" }, classes(line), time(line));
  return [element("div", { class: "head" }, head, cost(line, model)), stages(line, model), details];
}

/** GFLOPs of each stage alone. */
const stageCosts = (model) => model.exits.map(({ gflops }, k) => gflops - (k ? model.exits[k - 1].gflops : 0));

function cost(line, model) {
  const full = model.exits.at(-1).gflops;
  const parts = stageCosts(model).map((each, k) =>
    element("span", { class: k < line.stages.length ? "ran" : "unrun", style: { "flex-grow": each / full } }),
  );
  const saved = 1 - line.gflops / full;
  return element(
    "div",
    { class: "cost" },
    saved > 0 ? element("b", { class: "saved" }, `${percent(saved)} saved`) : element("b", {}, "nothing saved"),
    element("div", { class: "bar" }, ...parts),
    element("span", { class: "muted" }, `${gflops(line.gflops)} of ${gflops(full)} GFLOPs`),
  );
}

function stages(line, model) {
  const thresholds = line.operating_point?.thresholds ?? [];
  const full = model.exits.at(-1).gflops;
  const items = stageCosts(model).map((each, k) => {
    const said = line.stages[k];
    const state = !said ? "unrun" : k + 1 === line.exit && line.reason !== "goes_on" ? "left" : "on";
    const name = element("b", {}, `Stage ${k + 1}`);
    const title = element("span", { class: "stage-title" }, name, `${percent(each / full)} of the cost`);
    const unrun = element("span", { class: "muted" }, line.final ? "not run" : "not run yet");
    return element("li", { class: `stage ${state}` }, title, ...(said ? stageReport(said, thresholds[k], state) : [unrun]));
  });
  return element("ol", { class: "stages", "aria-label": "Stages" }, ...items);
}

function stageReport(said, threshold, state) {
  const fill = element("span", { class: "fill", style: { width: extent(said.score) } });
  const track = element("div", { class: "track" }, fill);
  let comparison = `score ${said.score.toFixed(3)}${state === "left" ? ", last stage" : ""}`;
  if (threshold !== undefined) {
    const [score, needed] = toldApart(said.score, threshold);
    comparison = `score ${score} ${said.score >= threshold ? "≥" : "<"} ${needed} threshold`;
    track.append(element("span", { class: "threshold", style: { left: extent(threshold) } }));
  }
  const verdict = element("span", { class: "verdict-of-stage" }, state === "left" ? "left here" : "went on");
  return [element("span", { class: "says" }, said.label, verdict), track, element("span", { class: "muted" }, comparison)];
}

function classes(line) {
  const rows = line.top_k.map(({ label, probability }) => row(label, probability, percent(probability, 1), ["fill"]));
  return element("section", {}, element("h5", {}, "Most likely"), element("dl", { class: "rows" }, ...rows.flat()));
}

function time(line) {
  const inStages = line.stages.reduce((total, each) => total + each.queue_ms + each.compute_ms, 0);
  const total = line.latency_ms;
  const before = total - inStages;
  const rows = [row("Receive and decode", before / total, milliseconds(before), ["fill", "other"])];
  for (const { stage, queue_ms, compute_ms, batch_size } of line.stages) {
    rows.push(row(`Stage ${stage}: queue`, queue_ms / total, milliseconds(queue_ms), ["fill", "other"]));
    rows.push(row(`Stage ${stage}: batch of ${batch_size}`, compute_ms / total, milliseconds(compute_ms), ["fill"]));
  }
  const title = element("h5", {}, `Time: ${milliseconds(total)}`);
  return element("section", {}, title, element("dl", { class: "rows" }, ...rows.flat()));
}

function row(name, share, text, kinds) {
  const fill = element("span", { class: kinds.join(" "), style: { width: extent(share) } });
  const bar = element("span", { class: "track" }, fill);
  return [element("dt", {}, name), element("dd", {}, bar, element("span", { class: "number" }, text))];
}
