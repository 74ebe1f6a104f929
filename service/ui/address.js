// The choice in the page's address: a reload or a link brings it back. The names are those of `POST /classify`.

const SELECTORS = ["policy", "thresholds", "budget_gflops", "min_accuracy"];

/** The choice that the address names, as [name, text]; undefined without one. */
export function choiceInAddress() {
  const given = new URLSearchParams(location.search);
  const name = SELECTORS.find((each) => given.has(each));
  return name && [name, given.get(name)];
}

/** Puts a choice, {name: value}, into the address; `undefined` leaves none there. */
export function keepInAddress(choice) {
  const address = new URL(location.href);
  for (const name of SELECTORS) address.searchParams.delete(name);
  for (const [name, value] of Object.entries(choice ?? {})) address.searchParams.set(name, value);
  history.replaceState(null, "", address.href.replaceAll("%2C", ","));
}
