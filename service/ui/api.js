// Calls to the service that this page came from.

const ATTEMPTS = 4;
const PATIENCE_SECONDS = 5; // the longest that a refused request waits before it is sent again
const LONGEST_SECONDS = 60; // that a request may take

/** An error of the service: the message is its `detail`, `code` its kind, `errors` has an entry for each bad image. */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail);
    this.code = document.code;
    this.errors = document.errors ?? [];
    this.status = status;
  }

  /** Whether the image is at fault, so that others may be answered. */
  get isOfTheImage() {
    return this.errors.length > 0 || this.status === 413;
  }
}

const INCOMPLETE = "The connection was lost before the answer was complete.";

let headers = {};

/** From now on calls have this key; nothing else keeps it. */
export const setKey = (key) => (headers = { Authorization: `Bearer ${key}` });

/** Whether calls have a key. */
export const hasKey = () => "Authorization" in headers;

async function request(path, options) {
  for (let attempt = 1; ; attempt += 1) {
    const response = await answered(path, options);
    if (response.ok) return response;
    const seconds = Number(response.headers.get("Retry-After") ?? Infinity);
    if (attempt === ATTEMPTS || seconds > PATIENCE_SECONDS) throw await problemOf(response);
    await response.body?.cancel();
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    options.signal?.throwIfAborted();
  }
}

async function answered(path, options) {
  try {
    const limit = AbortSignal.timeout(1000 * LONGEST_SECONDS);
    const signal = options.signal ? AbortSignal.any([options.signal, limit]) : limit;
    return await fetch(path, { ...options, headers, signal });
  } catch (error) {
    throw options.signal?.aborted ? error : new Problem({ detail: "The service does not answer." });
  }
}

async function problemOf(response) {
  const fallback = { detail: `The service answered with status ${response.status}.` };
  const document = await response.json().catch(() => fallback); // a proxy's error may be anything
  return new Problem(document?.detail ? document : fallback, response.status);
}

/** `GET /model`. */
export const getModel = async () => (await request("model", {})).json();

/** A sample photograph, as a File. */
export async function getSample() {
  const answer = await request("ui/cat.jpg", {});
  return new File([await answer.blob()], "cat.jpg", { type: "image/jpeg" });
}

/** `GET /metrics` as [{name, labels, value}]. */
export async function getMetrics() {
  const text = await (await request("metrics", {})).text();
  return Array.from(text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm), ([, name, labels = "", value]) => ({
    name,
    labels: Object.fromEntries(Array.from(labels.matchAll(/(\w+)="([^"]*)"/g), (pair) => pair.slice(1))),
    value: Number(value),
  }));
}

/** `POST /classify` as a stream: one document per exit that the image reaches, as soon as it is reached. */
export async function* classify(file, options, signal) {
  const form = new FormData();
  form.append("images", file);
  for (const [name, value] of Object.entries(options)) form.append(name, value);
  form.append("stream", "true");
  const response = await request("classify", { method: "POST", body: form, signal });
  for await (const line of lines(response.body, signal)) {
    signal.throwIfAborted(); // lines that arrived before
    const document = JSON.parse(line);
    // After the status is sent, an error comes as a last line.
    if (document.code) throw new Problem(document, document.status);
    yield document;
    if (document.final) return;
  }
  throw new Problem({ detail: INCOMPLETE });
}

async function* lines(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Problem({ detail: INCOMPLETE });
    });
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
