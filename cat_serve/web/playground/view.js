// What is said about the image: how it was made, what went wrong, and how to have it elsewhere.

import { curl } from "./api.js";

const PROMISES = {
  bytes: "the same request gives these very bytes again",
  latent: "the same request gives the same z, and nearly the same pixels",
};
const STAGES = ["queue", "generate", "encode"];
const find = (id) => document.getElementById(id);

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

/** Say what is shown, and what it took. */
export function showFacts({ title, details, timing, determinism }) {
  const what = find("what");
  what.replaceChildren(title, " ", element("span", details));
  const took = STAGES.filter((stage) => stage in timing);
  find("timing").hidden = took.length === 0;
  find("timing").textContent = took.map((stage) => `${stage} ${ms(timing[stage])}`).join(" · ");
  find("timing").setAttribute("aria-label", `Time on the server: ${find("timing").textContent}`);
  find("determinism").hidden = !(determinism in PROMISES);
  find("determinism").replaceChildren(element("b", determinism), PROMISES[determinism] ?? "");
}

function ms(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** Show an error with what repairs it; null takes it away. A 401 asks for a key. */
export function showProblem(error) {
  const place = find("problem");
  place.hidden = error === null;
  find("key-form").hidden = error?.status !== 401;
  if (error === null) return;
  place.replaceChildren(element("strong", error.message));
  if (error.hint) place.append(element("small", error.hint));
  if (error.requestId) place.append(element("small", `Request ${error.requestId}`));
}

/** Say that the server is busy and when it is asked again; null takes it away. */
export function showWaiting(seconds, problem) {
  const place = find("waiting");
  place.hidden = seconds === null;
  if (seconds !== null) place.textContent = `${problem.message} Trying again in ${seconds} s.`;
}

/** Offer what is shown as a file, a link and a command. */
export function showTake({ path, file, address, permalink }) {
  const download = find("download");
  download.href = address;
  download.download = file;
  find("permalink").hidden = !permalink;
  if (permalink) find("permalink").href = permalink;
  find("curl").textContent = curl(path, file);
}

/** Say something to those who do not see the page. */
export function say(text) {
  find("said").textContent = text;
}

/** Copy the curl command; where the browser keeps its clipboard to itself, select it to be copied by hand. */
export async function copyCommand() {
  const button = find("copy");
  const text = find("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(find("curl"));
    button.textContent = "Selected: press Ctrl+C";
  }
  say(button.textContent);
  setTimeout(() => { button.textContent = "Copy as curl"; }, 2000);
}
