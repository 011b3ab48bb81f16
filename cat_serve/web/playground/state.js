// What is shown, as values and as the address of the page: #class=7&seed=42&psi=0.7&n=9

export const MAX_SEED = 2 ** 32 - 1;

const FIRST = {
  model: "", class: "0", mix: "", weight: 0.5, seed: "", psi: 1, n: 1, stage: 0, to: "", toSeed: "",
};
const NAMES = Object.keys(FIRST);

/** Return the state that a hash describes; what it does not name has its first value. */
export function parse(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...FIRST };
  for (const name of NAMES) {
    const text = given.get(name);
    if (text === null) continue;
    // A number that is none stays text: the server then says what it accepts.
    state[name] = typeof FIRST[name] === "number" && text.trim() !== "" && isFinite(text) ? Number(text) : text;
  }
  return state;
}

/** Return the shortest hash from which `parse` makes this state again. */
export function format(state) {
  const told = new URLSearchParams();
  for (const name of NAMES) {
    if (name === "weight" && state.mix === "") continue;
    if (name === "class" || String(state[name]) !== String(FIRST[name])) told.set(name, state[name]);
  }
  return `#${told}`;
}

/** Return a state for a model that was just chosen: without truncation, mixtures and stages where it has none. */
export function suited(state, model) {
  const psi = model.truncation_psi.meaning === "none" ? { psi: FIRST.psi } : {};
  return { ...state, ...psi, ...(model.stages ? {} : { mix: "", stage: 0, to: "" }) };
}

/** Return a seed that leaves room for `n` images. */
export function draw(n = 1) {
  const [drawn] = crypto.getRandomValues(new Uint32Array(1));
  return String(Math.min(drawn, MAX_SEED + 1 - n));
}

/** Return the seed `step` further, or null where there is none. */
export function neighbour(seed, step) {
  const moved = /^\d+$/.test(seed) ? Number(seed) + step : NaN;
  return moved >= 0 && moved <= MAX_SEED ? String(moved) : null;
}

/** Return [[index, share], ...] of the classes that have a share in the image. */
export function shares({ class: first, mix, weight }) {
  if (mix === "" || mix === first) return [[first, 1]];
  const second = Math.round(100 * weight) / 100;
  return [[first, Math.round(100 - 100 * second) / 100], [mix, second]].filter(([, share]) => share > 0);
}

/** Return the class parameter: an index, or two indices with their weights. */
export function classOf(state) {
  const all = shares(state);
  return all.length === 1 ? all[0][0] : all.map((each) => each.join(":")).join(",");
}

/** Return the parameters of the request that makes what is shown, without what is the server's default. */
export function request(state, defaultModel) {
  const asked = { class: classOf(state), seed: state.seed };
  if (state.psi !== 1) asked.truncation_psi = state.psi;
  if (state.n !== 1) asked.n = state.n;
  if (state.stage) asked.stage = state.stage;
  if (state.model && state.model !== defaultModel) asked.model = state.model;
  return asked;
}

/** Return parameters as a query that people can read; a comma and a colon need no escape there. */
export function query(asked) {
  return String(new URLSearchParams(asked)).replaceAll("%3A", ":").replaceAll("%2C", ",");
}
