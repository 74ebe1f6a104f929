// The page: takes images and a selector, asks the service, and shows the answers as they arrive.

import { classify, getModel, getSample, setKey } from "./api.js";
import { buildCard, why } from "./card.js";
import { buildControls } from "./controls.js";
import { accurate, count, element, gflops, percent } from "./dom.js";
import { keepLive } from "./live.js";

const PAUSE_MS = 150; // while a slider is dragged, wait for it to rest
const at = (id) => document.getElementById(id);

let model;
let options;
let pictures = []; // {file, card, settled: needs no request, refused: never will, answer: its last line}
let running = new AbortController();
let timer;

function add(files) {
  if (!model) return;
  const fresh = Array.from(files, (file) => ({ file, card: buildCard(file, model), settled: false }));
  at("cards").prepend(...fresh.map(({ card }) => card.node));
  pictures = [...fresh, ...pictures];
  at("clear").hidden = !pictures.length;
  run();
}

function clear() {
  running.abort();
  for (const { card } of pictures) card.remove();
  pictures = [];
  at("clear").hidden = true;
  complain("");
  summarize();
}

function changed() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    for (const picture of pictures) Object.assign(picture, { settled: picture.refused, answer: undefined });
    run();
  }, PAUSE_MS);
}

/** Sends every image that needs an answer, and cancels the request under way. */
async function run() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  complain("");
  try {
    // One bad image fails its request: send the others again without it.
    let batch;
    while ((batch = pictures.filter((picture) => !picture.settled)).length) await ask(batch, signal);
  } catch (error) {
    if (signal.aborted) return;
    fail(error);
    summarize();
  }
}

async function ask(batch, signal) {
  for (const { card } of batch) card.wait();
  try {
    const files = batch.map(({ file }) => file);
    for await (const line of classify(files, options(), signal)) {
      signal.throwIfAborted(); // lines that arrived before the selector changed
      const picture = batch[line.index];
      picture.card.show(line);
      if (line.final) Object.assign(picture, { settled: true, answer: line });
    }
    if (batch.some((picture) => !picture.settled)) throw new Error("The answer is incomplete.");
  } catch (error) {
    if (!error.errors?.length) throw error;
    for (const { index, detail } of error.errors) {
      batch[index].card.fail(detail);
      Object.assign(batch[index], { settled: true, refused: true });
      speak(`${batch[index].file.name}: ${detail}`);
    }
  }
  summarize();
}

function summarize() {
  const answers = pictures.filter(({ answer }) => answer).map(({ answer }) => answer);
  at("summary").textContent = answers.length ? summary(answers) : "";
  if (answers.length === 1) speak(`${answers[0].label}. ${why(answers[0])}`);
  else if (answers.length) speak(at("summary").textContent);
}

function summary(answers) {
  const full = model.exits.at(-1).gflops;
  const mean = answers.reduce((total, { gflops }) => total + gflops, 0) / answers.length;
  const { name, thresholds, expected_accuracy, standard_error, expected_gflops } = answers.at(-1).operating_point;
  const point = [name, "thresholds", thresholds.map((each) => each.toFixed(3)).join(", ")].filter(Boolean).join(" ");
  const expected = `${accurate(expected_accuracy, standard_error)} accuracy, ${gflops(expected_gflops)} GFLOPs`;
  const cost = `${count(answers.length, "image")} at ${percent(mean / full)} of the full cost`;
  return `${cost}. Expected on average: ${expected} (${point}).`;
}

const speak = (text) => (at("spoken").textContent = text);

function complain(text) {
  at("problem").hidden = !text;
  at("problem").firstElementChild.textContent = text;
  if (text) for (const { card, settled } of pictures) if (!settled) card.fail("not classified");
}

function fail(error) {
  complain(error.message);
  at("door").hidden = error.code !== "unauthorized";
}

async function trySample() {
  try {
    add([await getSample()]);
  } catch (error) {
    complain(error.message);
  }
}

function listen() {
  at("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
  at("sample").addEventListener("click", trySample);
  at("clear").addEventListener("click", clear);
  const again = () => (model ? run() : start());
  at("retry").addEventListener("click", again);
  at("door").addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(at("key").value.trim());
    at("door").hidden = true;
    again();
  });
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      at("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") add(event.dataTransfer.files);
    });
  }
}

async function start() {
  complain("");
  try {
    model = await getModel();
  } catch (error) {
    fail(error);
    return;
  }
  const known = model.classes.slice(0, 20).join(", ") + (model.classes.length > 20 ? ", …" : "");
  at("model").replaceChildren(
    element("b", {}, model.name),
    ` has ${model.classes.length} classes: ${known}. Every image gets one of them, even if it shows something else.`,
  );
  options = buildControls(at("controls"), model, changed);
}

listen();
keepLive(at("live"));
start();
