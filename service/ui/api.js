// Calls to the service that this page came from.

/** An error of the service: the message is its `detail`, `code` its kind, `errors` has an entry for each bad image. */
export class Problem extends Error {
  constructor(document) {
    super(document.detail);
    this.code = document.code;
    this.errors = document.errors ?? [];
  }
}

let headers = {};

/** From now on calls have this key; nothing else keeps it. */
export const setKey = (key) => (headers = { Authorization: `Bearer ${key}` });

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw options.signal?.aborted ? error : new Problem({ detail: "The service does not answer." });
  }
  if (response.ok) return response;
  const fallback = { detail: `The service answered with status ${response.status}.` };
  throw new Problem(await response.json().catch(() => fallback));
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

/** `POST /classify` as a stream: one document per image and exit, as soon as it is reached. */
export async function* classify(files, options, signal) {
  const form = new FormData();
  for (const file of files) form.append("images", file);
  for (const [name, value] of Object.entries(options)) form.append(name, value);
  form.append("stream", "true");
  const response = await request("classify", { method: "POST", body: form, signal });
  for await (const line of lines(response.body)) {
    const document = JSON.parse(line);
    // After the status is sent, an error comes as a last line.
    if (document.code) throw new Problem(document);
    yield document;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
