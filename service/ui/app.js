// The page: takes images and a choice, asks the service, and shows the answers as they arrive.

import { choiceInAddress, keepInAddress } from "./address.js";
import { classify, getModel, getSample, hasKey, setKey } from "./api.js";
import { reasonOf } from "./card.js";
import { buildCommands } from "./commands.js";
import { buildControls } from "./controls.js";
import { element } from "./dom.js";
import { buildFrontier } from "./frontier.js";
import { keepLive } from "./live.js";
import { Picture } from "./picture.js";
import { pointOf, pointOfAnswer } from "./points.js";
import { buildSummary } from "./summary.js";

const FEW = 3; // images whose cards open by themselves
const AT_ONCE = 4; // requests: a browser has six connections to a host, and the strip needs one
const PAUSE_MS = 150; // while a slider is dragged, wait for it to rest
const at = (id) => document.getElementById(id);

let model;
let controls;
let frontier;
let showCommands;
let pictures = [];
let running = new AbortController();
let asking = new AbortController(); // what the other exits say
let timer;

async function add(files) {
  if (!model || !files.length) return;
  const fresh = Array.from(files, (file) => new Picture(file, model, (picture) => askEvery([picture])));
  pictures = [...fresh, ...pictures];
  const few = pictures.length <= FEW;
  for (const picture of few ? fresh : pictures) picture.open(few);
  at("cards").prepend(...fresh.map(({ node }) => node));
  at("cards").classList.toggle("many", !few);
  at("results").hidden = false;
  await run();
  if (at("results").getBoundingClientRect().top > innerHeight / 2) at("results").scrollIntoView();
}

function clear() {
  running.abort();
  asking.abort();
  asking = new AbortController();
  for (const picture of pictures) picture.remove();
  pictures = [];
  at("results").hidden = true;
  complain("");
  summarize();
  at("files").focus();
}

function changed() {
  clearTimeout(timer);
  frontier.show(pointOf(controls.choice(), model));
  timer = setTimeout(() => {
    keepInAddress(controls.choice());
    at("note").textContent = "";
    for (const picture of pictures) if (!picture.refused) picture.settled = false;
    run();
  }, PAUSE_MS);
}

/** Asks about every image that needs an answer, each in a request of its own, and cancels those under way. */
async function run() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  complain("");
  const batch = pictures.filter(({ settled }) => !settled);
  for (const picture of batch) picture.wait();
  summarize();
  try {
    await spread(batch, (picture) => ask(picture, controls.choice(), signal));
    speak(batch);
  } catch (error) {
    if (signal.aborted) return;
    running.abort();
    fail(error);
  }
  summarize();
}

async function ask(picture, choice, signal) {
  if (!(await isReadable(picture.file))) {
    picture.refuse("this file cannot be read; choose it again");
    return summarize();
  }
  try {
    for await (const line of classify(picture.file, choice, signal)) picture.show(line);
  } catch (error) {
    if (!error.isOfTheImage) throw error;
    picture.refuse(error.errors[0]?.detail ?? error.message);
  }
  summarize();
}

/** Whether it is a file, not a folder, and has not changed since it was chosen. */
const isReadable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

/** What every exit says: with a first exit as late as the last, all stages run. */
async function askEvery(asked) {
  const { signal } = asking;
  try {
    // Also of those that are being asked again, because the choice has changed: what every exit says does not.
    await spread(asked.filter(({ refused, every }) => !refused && !every), (picture) => askEveryOf(picture, signal));
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
  summarize();
}

async function askEveryOf(picture, signal) {
  try {
    for await (const line of classify(picture.file, { min_exit: model.exits.length }, signal)) {
      if (line.final) picture.showEvery(line.stages);
    }
  } catch (error) {
    if (!error.isOfTheImage) throw error; // else its own request says so
  }
}

/** Runs a task for every item, a few at once; the first error ends it. */
async function spread(items, task) {
  const waiting = [...items];
  const work = async () => {
    while (waiting.length) await task(waiting.shift());
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  } finally {
    waiting.length = 0;
  }
}

function summarize() {
  at("summary").replaceChildren(...buildSummary(pictures, model).nodes);
  const answered = pictures.filter(({ answer }) => answer);
  if (answered.length) frontier.show(pointOfAnswer(answered.at(-1).answer.operating_point));
  const open = answered.some(({ answer, every }) => !every && answer.exit !== answer.exits);
  at("compare").hidden = answered.length < 2 || !open;
  showCommands(pictures.filter(({ refused }) => !refused).map(({ file }) => file.name), controls.choice(), hasKey());
}

/** Tells those who do not see the page. */
function speak(batch) {
  const refused = batch.filter((picture) => picture.refused).map(({ file }) => `${file.name} is refused.`);
  const [answer, ...more] = pictures.filter((picture) => picture.answer).map((picture) => picture.answer);
  const text = answer && !more.length ? `${answer.label}. ${reasonOf(answer)}` : buildSummary(pictures, model).text;
  say([...refused, text].join(" "));
}

const say = (text) => (at("spoken").textContent = text);

function complain(text) {
  at("problem").hidden = !text;
  at("problem").firstElementChild.textContent = text;
  if (text) for (const picture of pictures) if (!picture.settled) picture.fail("not classified");
}

function fail(error) {
  complain(error.message);
  at("door").hidden = error.code !== "unauthorized";
}

async function trySample() {
  try {
    await add([await getSample()]);
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
  at("compare").addEventListener("click", async () => {
    await askEvery(pictures);
    say(buildSummary(pictures, model).text);
    if (at("compare").hidden) at("summary").focus(); // the button is gone
  });
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
  controls = buildControls(at("controls"), model, changed);
  frontier = buildFrontier(at("frontier"), model, (name) => controls.set("policy", name));
  showCommands = buildCommands(at("commands"), say);
  const wanted = choiceInAddress();
  if (wanted && !controls.set(...wanted)) {
    at("note").textContent = `This model does not offer ${wanted.join(" = ")}: the default is used.`;
  }
  frontier.show(pointOf(controls.choice(), model));
}

listen();
keepLive(at("live"));
start();
