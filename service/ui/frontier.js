// The frontier: what accuracy to expect at what mean cost, and which point of it is chosen.

import { accurate, element, gflops, percent, shape } from "./dom.js";
import { exitsOf, frontierOf, isNamed } from "./points.js";

const [WIDTH, HEIGHT] = [340, 208];
const AREA = { left: 40, right: WIDTH - 16, top: 28, bottom: HEIGHT - 36 };
const TICKS = 4;

/** The plot, in `node`; `show(point)` marks the chosen one, `choose(name)` is called for a point that was clicked. */
export function buildFrontier(node, model, choose) {
  const points = frontierOf(model);
  if (points.length < 2) return { show() {} };
  const exits = exitsOf(model);
  const all = [...points.map((point) => [point.mean_gflops, point.expected_accuracy]), ...exits];
  const x = scale(all.map(([cost]) => cost), [0], AREA.left, AREA.right);
  const y = scale(all.map(([, accuracy]) => accuracy), [], AREA.bottom, AREA.top);
  const place = (cost, accuracy) => [x.at(cost), y.at(accuracy)];
  const placeOf = (point) => place(point.mean_gflops, point.expected_accuracy);
  const mark = shape("g", { class: "chosen" });
  const plot = shape(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described(points) },
    ...axes(x, y),
    shape("polyline", { class: "curve", points: points.map((each) => placeOf(each)).join(" ") }),
    ...exits.map(([cost, accuracy], k) => exitMark(k + 1, model.exits.length, ...place(cost, accuracy))),
    mark,
    ...points.map((point) => pointMark(point, ...placeOf(point), choose)),
  );
  const caption = element("figcaption", {});
  node.replaceChildren(element("h3", {}, "What that buys"), element("figure", { class: "frontier" }, plot, caption));
  const full = model.exits.at(-1).gflops;
  return {
    show(point) {
      mark.replaceChildren(...(point ? chosenMark(...place(point.gflops, point.accuracy)) : []));
      caption.textContent = point ? expectation(point, full) : "Add an image: the service then says what to expect.";
    },
  };
}

function described(points) {
  const [first, last] = [points[0], points.at(-1)];
  const range = (one, other, unit) => `from ${one} to ${other} ${unit}`;
  const cost = range(gflops(first.mean_gflops), gflops(last.mean_gflops), "GFLOPs");
  const accuracy = range(percent(first.expected_accuracy, 1), percent(last.expected_accuracy, 1), "");
  return `Expected accuracy by mean cost of ${points.length} operating points: ${cost}, ${accuracy.trim()}`;
}

function expectation({ name, accuracy, error, gflops: cost }, full) {
  const price = `${gflops(cost)} GFLOPs, ${percent(cost / full)} of the full cost`;
  const what = `${accurate(accuracy, error)} accuracy at ${price}`;
  return `${name ? `${name}: ` : "Expected: "}${what}, on average.`;
}

function scale(values, more, from, to) {
  const [low, high] = [Math.min(...values, ...more), Math.max(...values, ...more)];
  const ticks = round(low, high);
  const margin = 0.04 * (high - low) || 0.04; // all exits may be equally good
  const bottom = more.length ? low : low - margin;
  return { at: (value) => from + ((value - bottom) / (high + margin - bottom)) * (to - from), ticks };
}

/** About TICKS round numbers from `low` to `high`. */
function round(low, high) {
  const rough = (high - low) / TICKS || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
  const first = Math.ceil(low / step);
  const number = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: number }, (_, k) => Number(((first + k) * step).toPrecision(6)));
}

function axes(x, y) {
  const { left, right, bottom } = AREA;
  const text = (attributes, content) => shape("text", attributes, content);
  return [
    ...x.ticks.map((value) => text({ x: x.at(value), y: bottom + 14, "text-anchor": "middle" }, String(value))),
    ...y.ticks.flatMap((value) => [
      shape("line", { class: "grid", x1: left, x2: right, y1: y.at(value), y2: y.at(value) }),
      text({ x: left - 6, y: y.at(value) + 4, "text-anchor": "end" }, percent(value).replace(" ", "")),
    ]),
    shape("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    text({ x: right, y: HEIGHT - 6, "text-anchor": "end" }, "mean GFLOPs per image"),
    text({ x: 0, y: 10 }, "expected accuracy"),
  ];
}

function exitMark(exit, exits, x, y) {
  const title = shape("title", {}, `every image to exit ${exit}`);
  const square = shape("rect", { x: x - 4, y: y - 4, width: 8, height: 8 }, title);
  // The curve lies above and to the left.
  const below = { x, y: y + 18, "text-anchor": exit < exits ? "middle" : "end" };
  const label = shape("text", exit === 1 ? { x: x + 8, y: y + 4 } : below, `exit ${exit}`);
  return shape("g", { class: "fixed" }, square, label);
}

function pointMark(point, x, y, choose) {
  const { name, expected_accuracy, standard_error, mean_gflops } = point;
  const words = `${name}: ${accurate(expected_accuracy, standard_error)} at ${gflops(mean_gflops)} GFLOPs`;
  const group = shape("g", { class: isNamed(point) ? "point named" : "point" }, shape("title", {}, words));
  group.append(shape("circle", { cx: x, cy: y, r: 7, class: "reach" }), shape("circle", { cx: x, cy: y, r: 2.5 }));
  if (isNamed(point) && !point.same_as) group.append(shape("text", { x: x - 4, y: y - 8, "text-anchor": "end" }, name));
  // For the mouse; by keyboard the list of policies has the same.
  group.addEventListener("click", () => choose(name));
  return group;
}

function chosenMark(x, y) {
  return [
    shape("line", { x1: x, x2: x, y1: y, y2: AREA.bottom }),
    shape("line", { x1: AREA.left, x2: x, y1: y, y2: y }),
    shape("circle", { cx: x, cy: y, r: 6 }),
  ];
}
