// The page: one state; a change is shown in the fields at once, asked of the server, and then written to the address.

import { ask, timing, useKey } from "./api.js";
import { Controls } from "./controls.js";
import { Latest } from "./latest.js";
import { Picture, SHARP_BELOW_PX } from "./picture.js";
import { Player } from "./player.js";
import { Recent } from "./recent.js";
import { Stages } from "./stages.js";
import { classOf, draw, format, parse, query, request, shares, suited } from "./state.js";
import { copyCommand, say, showFacts, showProblem, showTake, showWaiting } from "./view.js";

const SETTLED_MS = 500;
const find = (id) => document.getElementById(id);

let state = parse("");
let models = [];
let settling = null;

const controls = new Controls((part) => change("model" in part ? { class: "0", mix: "", stage: 0, ...part } : part));
const picture = new Picture(find("picture"), (i) => change({ seed: String(Number(state.seed) + i), n: 1 }));
const recent = new Recent(find("history"), (hash) => go(hash));
const stages = new Stages(find("stages"), (stage) => change({ stage, n: 1 }), failed);
const player = new Player(find("between"), (part) => change(part, false), failed);
const showing = new Latest(make, failed);

/** Return the model that the state names, else the server's default. */
function model() {
  return models.find(({ name }) => name === state.model) ?? models.find((each) => each.default) ?? models[0];
}

function nameOf(index) {
  return model().classes.find((each) => String(each.index) === index)?.name ?? index;
}

/** Take a part of the state over and show it; `asks` says whether that takes another image. */
function change(part, asks = true) {
  const other = "model" in part && part.model !== model().name;
  state = { ...state, ...part };
  if (other) state = suited(state, model());
  if (other) offer();
  controls.show(state, nameOf);
  player.show(state, model());
  if (asks) showing.submit(state);
  else settle();
}

function go(hash) {
  state = parse(hash);
  if (state.seed === "") state.seed = draw(state.n);
  offer();
  change({});
}

function offer() {
  const { name, version, image_size: [height, width], backend, precision } = model();
  controls.offer(model(), models);
  player.offer(model());
  const facts = [`${width} × ${height}`, backend, precision].filter(Boolean).join(" · ");
  find("model-facts").textContent = models.length > 1 ? facts : `${name} · ${facts}`;
  find("model-facts").title = `version ${version}`;
}

/** Ask for the image of a state and show it. */
async function make(wanted, signal) {
  picture.busy = true;
  const path = `generate?${query(request(wanted, model().first))}`;
  const answer = await ask(path, { signal, onWait: showWaiting });
  const blob = await answer.blob();
  const made = describe(wanted, answer.headers);
  await picture.show(blob, wanted.n, model().image_size, made.labels);
  picture.busy = false;
  showWaiting(null);
  showProblem(null);
  showFacts(made);
  showTake({ path, file: made.file, address: picture.address, permalink: made.permalink });
  player.still(wanted.n === 1 ? picture.address : null, Math.max(...model().image_size) < SHARP_BELOW_PX);
  stages.show(wanted, model());
  settle(wanted, blob, made);
}

function describe(wanted, headers) {
  const title = shares(wanted).map(
    ([index, share], _, all) => nameOf(index) + (all.length > 1 ? ` ${Math.round(100 * share)} %` : ""),
  ).join(" + ");
  const details = [`seed ${wanted.seed}`];
  if (wanted.n > 1) details[0] = `seeds ${wanted.seed} to ${Number(wanted.seed) + wanted.n - 1}`;
  if (wanted.psi !== 1) details.push(`ψ ${wanted.psi}`);
  if (wanted.stage) details.push(`stage ${wanted.stage} of ${model().stages}`);
  const labels = wanted.n === 1 ? [[title, ...details].join(", ")]
    : Array.from({ length: wanted.n }, (_, i) => `${title}, seed ${Number(wanted.seed) + i}`);
  const name = [model().name, `class-${classOf(wanted).replace(/[:,]/g, "-")}`, `seed-${wanted.seed}`];
  if (wanted.n > 1) name.push(`n-${wanted.n}`);
  if (wanted.stage) name.push(`stage-${wanted.stage}`);
  return {
    title, labels, details: details.join(" · "), file: `${name.join("_")}.png`,
    timing: timing(headers.get("Server-Timing")), determinism: headers.get("X-Determinism"),
    permalink: headers.get("X-Permalink"),
  };
}

/** When nothing changes for a moment: write the address, remember the image, tell what it is. */
function settle(wanted, blob, made) {
  clearTimeout(settling);
  settling = setTimeout(() => {
    history.replaceState(null, "", format(state));
    if (blob === undefined) return;
    recent.add(format(wanted), blob, made.labels.length > 1 ? `${made.title}, ${made.details}` : made.labels[0]);
    say(`${made.title}, ${made.details}`);
  }, SETTLED_MS);
}

function failed(error) {
  picture.busy = false;
  showWaiting(null);
  showProblem(error);
}

/** Ask which models and classes there are, then for the first image. */
async function start() {
  const [cards, classes] = await Promise.all(["models", "classes"].map(
    async (path) => (await (await ask(path, { onWait: showWaiting })).json()).models,
  ));
  const first = cards.find((each) => each.default).name;
  models = cards.map((card) => ({
    ...card, first, classes: classes.find((each) => each.model === card.name).classes,
  }));
  go(location.hash);
}

find("copy").addEventListener("click", copyCommand);
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("key").value);
  find("key").value = "";
  if (models.length) change({});
  else start().catch(failed);
});
addEventListener("hashchange", () => models.length && go(location.hash));
start().catch(failed);
