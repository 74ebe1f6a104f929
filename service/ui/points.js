// Operating points: which one a choice stands for, by the rules of service/operating_points.py.

/** Those that budgets and accuracies choose among. */
export function frontierOf(model) {
  const points = model.operating_points.filter((point) => point.risk === null);
  return points.length ? points : model.operating_points;
}

/** Whether somebody gave it a name: p01, p02, ... only have a number. */
export const isNamed = (point) => !/^p\d+$/.test(point.name);

export const defaultPoint = (model) => model.operating_points.find(({ name }) => name === model.default_policy);

/**
 * {name, accuracy, error, gflops} that a choice, {selector: value}, leads to; undefined for thresholds, whose expectation only
 * the service knows.
 */
export function pointOf(choice, model) {
  const [[selector, value]] = Object.entries(choice);
  const points = frontierOf(model);
  const cheapest = (some) => some.reduce((one, other) => (other.mean_gflops < one.mean_gflops ? other : one), some[0]);
  const best = (some) =>
    some.reduce((one, other) => (other.expected_accuracy > one.expected_accuracy ? other : one), some[0]);
  const chosen = {
    policy: () => model.operating_points.find(({ name }) => name === value),
    budget_gflops: () => best(points.filter((point) => point.mean_gflops <= Number(value))),
    min_accuracy: () => cheapest(points.filter((point) => point.expected_accuracy >= Number(value))),
    thresholds: () => undefined,
  }[selector]();
  return chosen && pointOfAnswer({ ...chosen, expected_gflops: chosen.mean_gflops });
}

/** The same from an answer. */
export const pointOfAnswer = ({ name, expected_accuracy, standard_error, expected_gflops }) => ({
  name,
  accuracy: expected_accuracy,
  error: standard_error,
  gflops: expected_gflops,
});

/** [GFLOPs, accuracy] of running every image to one exit, where the model's results have them. */
export function exitsOf(model) {
  const results = model.results.filter(({ split }) => split === "val");
  return results.length === model.exits.length
    ? results.map(({ exit, accuracy }) => [model.exits[exit - 1].gflops, accuracy])
    : [];
}
