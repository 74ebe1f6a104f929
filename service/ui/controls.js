// How much an image may cost: one selector of `POST /classify`.

import { accurate, element, gflops, percent } from "./dom.js";

/**
 * Fills the form and calls `changed` when the selection changes.
 * Returns a function that gives the selection as options of `POST /classify`.
 */
export function buildControls(form, model, changed) {
  const panels = [
    policyPanel(model),
    ...(model.exits.length > 1 ? [thresholdsPanel(model)] : []),
    rangePanel(model, "budget_gflops", "Budget", "mean_gflops", "Mean cost, at most", (v) => `${gflops(v)} GFLOPs`),
    rangePanel(model, "min_accuracy", "Accuracy", "expected_accuracy", "Accuracy, at least", (v) => percent(v, 1)),
  ];
  const radios = panels.map((panel, number) => radio(panel, number === 0));
  const legend = element("legend", {}, "How much may an image cost?");
  const fieldset = element("fieldset", { class: "modes" }, legend, ...radios);
  form.replaceChildren(fieldset, ...panels.map((panel) => panel.node));

  const chosen = () => panels.find((panel) => panel.name === new FormData(form).get("selector"));
  const show = () => panels.forEach((panel) => (panel.node.hidden = panel !== chosen()));
  show();
  const choice = () => ({ [chosen().name]: chosen().value() });
  let last = JSON.stringify(choice());
  const update = () => {
    show();
    const now = JSON.stringify(choice());
    if (now !== last) changed();
    last = now;
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const kind of ["input", "change"]) form.addEventListener(kind, update);
  return choice;
}

function radio(panel, checked) {
  const input = element("input", { type: "radio", name: "selector", value: panel.name });
  input.checked = checked;
  return element("label", {}, input, element("span", {}, panel.title));
}

function policyPanel(model) {
  const isNamed = (point) => !/^p\d+$/.test(point.name);
  const option = (point) => {
    const name = point.same_as ? `${point.name}, same as ${point.same_as}` : point.name;
    const accuracy = accurate(point.expected_accuracy, point.standard_error);
    const text = `${name} · ${accuracy} accuracy · ${gflops(point.mean_gflops)} GFLOPs`;
    const node = element("option", { value: point.name }, text);
    node.selected = point.name === model.default_policy;
    return node;
  };
  const points = model.operating_points;
  const others = points.filter((point) => !isNamed(point)).map(option);
  const select = element("select", { id: "policy" }, ...points.filter(isNamed).map(option));
  if (others.length) select.append(element("optgroup", { label: "More operating points" }, ...others));
  const label = element("label", { for: "policy" }, "Thresholds found on the calibration images");
  const node = element("div", { class: "choice" }, label, select);
  return { name: "policy", title: "Policy", node, value: () => select.value };
}

function thresholdsPanel(model) {
  const start = model.operating_points.find((point) => point.name === model.default_policy).thresholds;
  const sliders = start.map((threshold, number) =>
    slider(`threshold-${number + 1}`, `Threshold of exit ${number + 1}`, 0, 1, 0.005, threshold, (v) => v.toFixed(3)),
  );
  return {
    name: "thresholds",
    title: "Thresholds",
    node: element("div", { class: "choice" }, ...sliders.map((each) => each.node)),
    value: () => sliders.map((each) => each.input.value).join(","),
  };
}

function rangePanel(model, name, title, field, text, format) {
  const frontier = model.operating_points.filter((point) => point.risk === null);
  const values = frontier.map((point) => point[field]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const start = model.operating_points.find((point) => point.name === model.default_policy)[field];
  const { node, input } = slider(name, text, low, high, "any", start, format);
  return { name, title, node: element("div", { class: "choice" }, node), value: () => input.value };
}

function slider(id, text, min, max, step, value, format) {
  const input = element("input", { id, type: "range", min, max, step, value });
  const output = element("output", { for: id });
  const show = () => (output.textContent = format(Number(input.value)));
  input.addEventListener("input", show);
  show();
  return { input, node: element("div", { class: "slider" }, element("label", { for: id }, text), output, input) };
}
