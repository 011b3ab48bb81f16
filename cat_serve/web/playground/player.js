// Frames from the image on the page to another one: fetched once, then played, paused and stepped through.

import { ask, curl } from "./api.js";
import { Combobox } from "./combobox.js";
import { Latest } from "./latest.js";
import { SHARP_BELOW_PX } from "./picture.js";
import { classOf, draw } from "./state.js";
import { unzip } from "./unzip.js";

const FRAMES = 32;
const FPS = 16;
const find = (id) => document.getElementById(id);

export class Player {
  #section;
  #work;
  #to;
  #asked = null;
  #frames = [];
  #framesOf = "";
  #at = 0;
  #timer = null;

  /** `onChange` gets the part of the state that somebody changed; `onError` what went wrong. */
  constructor(section, onChange, onError) {
    this.#section = section;
    this.#work = new Latest((asked, signal) => this.#fetch(asked, signal), (error) => {
      find("between-note").textContent = "";
      onError(error);
    });
    this.#to = new Combobox(find("to-box"), (index) => onChange({ to: index }));
    find("to-seed").addEventListener("change", (event) => onChange({ toSeed: event.target.value.trim() }));
    find("to-dice").addEventListener("click", () => onChange({ toSeed: draw() }));
    find("play").addEventListener("click", () => this.#toggle());
    find("scrub").addEventListener("input", (event) => {
      this.#pause();
      this.#turnTo(event.target.valueAsNumber);
    });
    section.addEventListener("toggle", () => {
      if (!section.open) this.#pause();
      else if (find("to-seed").value === "") onChange({ toSeed: draw() });
    });
  }

  offer(model) {
    this.#to.classes = model.classes;
    find("to-field").hidden = !model.stages;
  }

  /** Take over where the frames begin and end; frames of something else are put away. */
  show(state, model) {
    this.#section.hidden = false;
    if (state.toSeed !== "") this.#section.open = true;
    const to = state.to === "" ? state.class : state.to;
    this.#to.value = to;
    if (document.activeElement !== find("to-seed")) find("to-seed").value = state.toSeed;
    this.#asked = requestOf(state, to, model);
    if (this.#framesOf !== "" && this.#framesOf !== JSON.stringify(this.#asked)) this.#putAway();
  }

  /** Show the image where the frames begin until there are frames; null: there are several on the page. */
  still(address, small) {
    if (this.#frames.length) return;
    const frame = find("frame");
    frame.classList.toggle("sharp", small);
    if (address === null) frame.removeAttribute("src");
    else frame.src = address;
    frame.alt = address === null ? "" : "Where the frames begin";
  }

  #toggle() {
    if (this.#timer !== null) this.#pause();
    else if (this.#frames.length) this.#play();
    else this.#work.submit(this.#asked);
  }

  async #fetch(asked, signal) {
    const note = find("between-note");
    note.textContent = `Making ${asked.frames} frames …`;
    const onWait = (seconds, problem) => {
      note.textContent = `${problem.message} Trying again in ${seconds} s.`;
    };
    const answer = await ask("interpolate", { signal, onWait, body: { ...asked, format: "zip" } });
    const files = (await unzip(await answer.blob())).filter(({ name }) => name.endsWith(".png"));
    const frames = files.map(({ blob }) => Object.assign(new Image(), { src: URL.createObjectURL(blob) }));
    await Promise.all(frames.map((frame) => frame.decode()));
    if (JSON.stringify(this.#asked) !== JSON.stringify(asked)) return;
    this.#take(frames, asked);
    this.#play();
  }

  #take(frames, asked) {
    this.#putAway();
    this.#frames = frames;
    this.#framesOf = JSON.stringify(asked);
    const scrub = find("scrub");
    scrub.max = frames.length - 1;
    scrub.disabled = false;
    find("frame").classList.toggle("sharp", frames[0].naturalWidth < SHARP_BELOW_PX);
    find("between-note").textContent = `${frames.length} frames, made once.`;
    find("between-curl").hidden = false;
    find("between-curl").textContent = curl("interpolate", "between.webp", { ...asked, format: "webp" });
    this.#turnTo(0);
  }

  #putAway() {
    this.#pause();
    for (const frame of this.#frames) URL.revokeObjectURL(frame.src);
    this.#frames = [];
    this.#framesOf = "";
    find("scrub").disabled = true;
    find("between-curl").hidden = true;
    find("frame-value").textContent = find("between-note").textContent = "";
  }

  #play() {
    find("play").textContent = "Pause";
    this.#timer = setInterval(() => this.#turnTo((this.#at + 1) % this.#frames.length), 1000 / FPS);
  }

  #pause() {
    clearInterval(this.#timer);
    this.#timer = null;
    find("play").textContent = "Play";
  }

  #turnTo(at) {
    this.#at = at;
    find("frame").src = this.#frames[at].src;
    find("frame").alt = `Frame ${at + 1} of ${this.#frames.length}`;
    find("scrub").value = at;
    find("frame-value").textContent = `${at + 1}/${this.#frames.length}`;
  }
}

/** Return the request for the frames; the server plays a loop for ever, and so does the page. */
function requestOf(state, to, model) {
  const from = classOf(state);
  const asked = {
    class: to === from ? from : [from, to],
    seed: [state.seed, state.toSeed].map((seed) => (/^\d+$/.test(seed) ? Number(seed) : seed)),
    frames: Math.min(FRAMES, model.limits.max_frames_per_request),
    fps: FPS,
    loop: true,
  };
  if (state.psi !== 1) asked.truncation_psi = state.psi;
  if (model.name !== model.first) asked.model = model.name;
  return asked;
}
