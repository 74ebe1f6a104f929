// How much an image may cost: one selector of `POST /classify`.

import { accurate, element, gflops, percent } from "./dom.js";
import { defaultPoint, exitsOf, frontierOf, isNamed } from "./points.js";

/**
 * Fills the form and calls `changed` when the selection changes.
 * `choice()` gives the selection as options of `POST /classify`; `set(name, text)` makes one and says whether it could.
 */
export function buildControls(form, model, changed) {
  const panels = [
    policyPanel(model),
    ...(model.exits.length > 1 ? [thresholdsPanel(model)] : []),
    rangePanel(model, "budget_gflops", "Budget", "mean_gflops", "Mean cost, at most", (v) => `${gflops(v)} GFLOPs`, ([min]) =>
      fits(min, Infinity)),
    rangePanel(model, "min_accuracy", "Accuracy", "expected_accuracy", "Accuracy, at least", (v) => percent(v, 1), ([, max]) =>
      fits(0, Math.max(max, ...exitsOf(model).map(([, accuracy]) => accuracy)))),
  ];
  const radios = panels.map(radio);
  const legend = element("legend", {}, "How much may an image cost?");
  const fieldset = element("fieldset", { class: "modes" }, legend, ...radios.map((each) => each.parentNode));
  form.replaceChildren(fieldset, ...panels.map((panel) => panel.node));

  const chosen = () => panels[radios.findIndex((each) => each.checked)];
  const choice = () => ({ [chosen().name]: chosen().value() });
  let last;
  const update = () => {
    panels.forEach((panel) => (panel.node.hidden = panel !== chosen()));
    const now = JSON.stringify(choice());
    if (last && now !== last) changed();
    last = now;
  };
  const set = (name, text) => {
    const number = panels.findIndex((panel) => panel.name === name);
    if (!panels[number]?.set(text)) return false;
    radios[number].checked = true;
    update();
    return true;
  };
  radios[0].checked = true;
  update();
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const kind of ["input", "change"]) form.addEventListener(kind, update);
  return { choice, set };
}

function radio(panel) {
  const input = element("input", { type: "radio", name: "selector", value: panel.name });
  element("label", {}, input, element("span", {}, panel.title));
  return input;
}

function policyPanel(model) {
  const option = (point) => {
    const name = point.same_as ? `${point.name}, same as ${point.same_as}` : point.name;
    const accuracy = accurate(point.expected_accuracy, point.standard_error);
    const node = element("option", { value: point.name }, `${name}: ${accuracy} at ${gflops(point.mean_gflops)} GFLOPs`);
    node.selected = point.name === model.default_policy;
    return node;
  };
  const points = model.operating_points;
  const others = points.filter((point) => !isNamed(point)).map(option);
  const select = element("select", { id: "policy" }, ...points.filter(isNamed).map(option));
  if (others.length) select.append(element("optgroup", { label: "More operating points" }, ...others));
  const label = element("label", { for: "policy" }, "Thresholds found on the calibration images");
  const set = (text) => {
    const known = points.some((point) => point.name === text);
    if (known) select.value = text;
    return known;
  };
  const node = element("div", { class: "choice" }, label, select);
  return { name: "policy", title: "Policy", node, value: () => select.value, set };
}

function thresholdsPanel(model) {
  const start = defaultPoint(model).thresholds;
  const sliders = start.map((threshold, number) => {
    const attributes = { id: `threshold-${number + 1}`, min: 0, max: 1, step: 0.005 };
    return slider(attributes, `Threshold of exit ${number + 1}`, threshold.toFixed(3), (v) => v.toFixed(3));
  });
  return {
    name: "thresholds",
    title: "Thresholds",
    node: element("div", { class: "choice" }, ...sliders.map((each) => each.node)),
    value: () => sliders.map((each) => each.value()).join(","),
    set(text) {
      const given = text.split(",");
      if (given.length !== sliders.length || !given.every(fits(0, 1))) return false;
      return sliders.every((each, k) => each.set(given[k]));
    },
  };
}

/** `offered([min, max])` says what the service takes, which may be more than the operating points span. */
function rangePanel(model, name, title, field, text, format, offered) {
  const values = frontierOf(model).map((point) => point[field]);
  const [min, max] = [Math.min(...values), Math.max(...values)];
  const start = String(defaultPoint(model)[field]);
  const { node, value, set } = slider({ id: name, min, max, step: "any" }, text, start, format);
  const panel = element("div", { class: "choice" }, node);
  return { name, title, node: panel, value, set: (given) => offered([min, max])(given) && set(given) };
}

const fits = (min, max) => (text) => text.trim() !== "" && Number(text) >= min && Number(text) <= max;

/** A slider whose value is a text: what was set, to the last digit, until it is moved. */
function slider(attributes, text, start, format) {
  const { id, min, max } = attributes;
  const input = element("input", { type: "range", ...attributes });
  const output = element("output", { for: id });
  let value;
  const set = (given) => {
    value = given.trim();
    input.value = value;
    output.textContent = format(Number(value));
    input.setAttribute("aria-valuetext", output.textContent);
    return true;
  };
  // Four digits are enough, but for the ends, beyond which nothing is.
  const rounded = (moved) => Math.min(max, Math.max(min, Number(moved.toPrecision(4))));
  input.addEventListener("input", () => set(String(rounded(input.valueAsNumber))));
  set(start);
  const node = element("div", { class: "slider" }, element("label", { for: id }, text), output, input);
  return { node, value: () => value, set };
}
