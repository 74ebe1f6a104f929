// The same request as a command: for curl and for Python.

import { element } from "./dom.js";

const PLAIN = /^[\w.,@%+=:/-]+$/; // needs no quotes in a shell

const inShell = (text) => (PLAIN.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** A file in a field of `curl -F`, where a name with other characters stands in quotes of its own. */
const field = (name) => (/^[\w.-]+$/.test(name) ? name : `"${name.replaceAll(/[\\"]/g, "\\$&")}"`);

/** `curl` for files by name, a choice {option: text}, and the service's address. */
export function asCurl(names, choice, url, withKey) {
  const images = names.map((name) => `-F ${inShell(`images=@${field(name)}`)}`);
  const options = Object.entries(choice).map(([name, value]) => `-F ${inShell(`${name}=${value}`)}`);
  const key = withKey ? [`-H "Authorization: Bearer $MSMLP_API_KEY"`] : [];
  const between = images.length > 1 ? " \\\n  " : " ";
  return ["curl -sS", ...images, ...options, ...key, inShell(`${url}/classify`)].join(between);
}

/** A Python program that does the same. */
export function asPython(names, choice, url) {
  const files = names.map((name) => JSON.stringify(name));
  const list = files.length > 1 ? `[\n        ${files.join(",\n        ")},\n    ]` : `[${files}]`;
  const [[name, text]] = Object.entries(choice);
  const value = { policy: () => JSON.stringify(text), thresholds: () => `[${text.split(",").join(", ")}]` }[name];
  return `import msmlp

with msmlp.Client(${JSON.stringify(url)}) as client:
    answer = client.classify(${list}, ${name}=${value ? value() : text})

for result in answer.results:
    print(result.label, f"{result.confidence:.0%}", "at exit", result.exit, "for", result.gflops, "GFLOPs")
`;
}

/** Fills `node` with both; `update(names, choice, withKey)` keeps them true, `say` is told that one was copied. */
export function buildCommands(node, say) {
  const url = new URL(".", location.href).href.replace(/\/$/, "");
  const [curl, python] = [block("curl", say), block("Python", say)];
  const hint = "Run it in the folder that has the images; if the service asks for a key, with it in MSMLP_API_KEY.";
  node.append(element("p", { class: "muted" }, hint), curl.node, python.node);
  return (names, choice, withKey) => {
    node.hidden = !names.length;
    if (!names.length) return;
    curl.show(asCurl(names, choice, url, withKey));
    python.show(asPython(names, choice, url));
  };
}

function block(title, say) {
  const text = element("pre", { tabindex: 0, "aria-label": `As ${title}` });
  const button = element("button", { type: "button" }, `Copy as ${title}`);
  button.addEventListener("click", async () => {
    say((await copied(text)) ? `Copied as ${title}.` : "Press Ctrl+C to copy.");
  });
  const node = element("section", {}, element("div", { class: "buttons" }, button), text);
  return { node, show: (content) => (text.textContent = content) };
}

/** Whether it went to the clipboard; over plain HTTP a browser may not let it, and the text is selected instead. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(text);
    return false;
  }
}
