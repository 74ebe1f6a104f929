// One image on the page: a line of the list, which opens to a card.

import { buildAnswer, costBar } from "./card.js";
import { element, milliseconds, percent } from "./dom.js";
import { buildFigures } from "./figures.js";

let made = 0;

/** An image and its answer. `askEvery(picture)` is called when its card is asked what the other exits would say. */
export class Picture {
  settled = false; // needs no request
  refused = false; // never will
  answer; // the last line of its stream
  every; // what every exit says of it, [K]
  #line; // the newest line of its stream
  #figures;
  #top = element("div", { class: "top" });

  constructor(file, model, askEvery) {
    Object.assign(this, { file, model });
    this.url = URL.createObjectURL(file);
    const id = `body-${(made += 1)}`;
    this.body = element("div", { class: "body", id, hidden: "" });
    this.thumb = element("img", { class: "thumb", src: this.url, alt: "", loading: "lazy", decoding: "async" });
    this.thumb.addEventListener("error", () => {
      const none = element("span", { class: "thumb" });
      this.thumb.replaceWith(none);
      this.thumb = none;
    });
    this.head = element("button", { type: "button", class: "row", "aria-expanded": "false", "aria-controls": id });
    this.head.addEventListener("click", () => this.open(!this.isOpen));
    this.head.append(this.thumb, named(file.name, ""));
    this.title = element("h3", {}, this.head);
    this.button = element("button", { type: "button" }, "What would the other exits have said?");
    this.button.addEventListener("click", () => askEvery(this));
    this.node = element("article", { class: "card", "aria-label": file.name }, this.title, this.body);
  }

  get isOpen() {
    return this.head.getAttribute("aria-expanded") === "true";
  }

  open(whether) {
    this.head.setAttribute("aria-expanded", String(whether));
    this.#draw();
  }

  /** An answer is to come, for the first time or after a change. */
  wait() {
    Object.assign(this, { settled: false, answer: undefined });
    this.node.classList.add("waiting");
  }

  /** A line of the stream. */
  show(line) {
    this.#line = line;
    if (line.final) Object.assign(this, { settled: true, answer: line });
    this.node.classList.toggle("waiting", !line.final);
    this.#draw();
  }

  /** What every exit says, whatever the choice is. */
  showEvery(stages) {
    const focused = document.activeElement === this.button;
    this.every = stages;
    this.#draw();
    if (focused) this.body.querySelector(".others")?.focus();
  }

  /** The service does not take it. */
  refuse(detail) {
    Object.assign(this, { settled: true, refused: true });
    this.fail(detail);
  }

  /** There is no answer; the reason stands in its place. */
  fail(detail) {
    this.node.classList.remove("waiting");
    this.#line = undefined;
    const text = element("span", {}, `${this.file.name}: ${detail}`);
    this.node.replaceChildren(element("p", { class: "refused" }, this.thumb, text));
  }

  remove() {
    URL.revokeObjectURL(this.url);
    this.node.remove();
  }

  #draw() {
    const line = this.#line;
    this.body.hidden = !line || !this.isOpen;
    if (!line) return;
    this.head.replaceChildren(this.thumb, ...lineOf(line, this));
    if (!this.head.isConnected) this.node.replaceChildren(this.title, this.body);
    // The body is only made when it is seen: a page may have hundreds of images.
    if (this.body.hidden) return;
    const { verdict, rest } = buildAnswer(line, this.every, this.model, this.button);
    this.#figures ??= buildFigures(this.file, this.url, this.model.preprocess);
    this.#top.replaceChildren(this.#figures, verdict);
    this.body.replaceChildren(this.#top, ...rest);
  }
}

/** The answer in one line: the label, the cost, the exit, and the image's own time. */
function lineOf(line, { file, model, every }) {
  const { label, confidence, exit, exits, gflops, final, latency_ms } = line;
  const saved = 1 - gflops / model.exits.at(-1).gflops;
  const last = every?.at(-1).label;
  const dissent = final && last && last !== label ? `last exit: ${last}` : "";
  const cost = saved > 0 ? [{ class: "saved" }, `${percent(saved)} saved`] : [{ class: "saved none" }, "nothing saved"];
  return [
    named(label ?? "no answer", label === null ? "" : `${percent(confidence)} confident`, dissent, file.name),
    costBar(line, model),
    element("b", ...cost),
    element("span", { class: "exit" }, final && exit ? `exit ${exit} of ${exits}` : ""),
    element("span", { class: "time" }, final ? milliseconds(latency_ms) : ""),
  ];
}

function named(label, sure, dissent = "", name = "") {
  const first = element("span", { class: "label" }, label, " ", element("small", {}, sure));
  if (dissent) first.append(" ", element("small", { class: "dissent" }, dissent));
  return element("span", { class: "what" }, first, " ", element("span", { class: "name" }, name));
}
