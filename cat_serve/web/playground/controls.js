// The settings: every field says what changed, and shows the state that it is given.

import { Combobox } from "./combobox.js";
import { MAX_SEED, draw, neighbour } from "./state.js";

const COUNTS = [1, 4, 9, 16, 36, 64];
const find = (id) => document.getElementById(id);

export class Controls {
  #onChange;
  #state = null;
  #class;
  #mix;

  /** `onChange` gets the part of the state that somebody changed. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#class = new Combobox(find("class-box"), (index) => onChange({ class: index, stage: 0 }));
    this.#mix = new Combobox(find("mix-box"), (index) => onChange({ mix: index, stage: 0 }));
    find("unmix").addEventListener("click", () => {
      onChange({ mix: "" });
      find("mix").focus();
    });
    find("weight").addEventListener("input", (event) => onChange({ weight: event.target.valueAsNumber }));
    find("psi").addEventListener("input", (event) => onChange({ psi: event.target.valueAsNumber }));
    find("seed").addEventListener("change", (event) => onChange({ seed: event.target.value.trim() }));
    find("previous").addEventListener("click", () => this.#step(-1));
    find("next").addEventListener("click", () => this.#step(1));
    find("dice").addEventListener("click", () => onChange({ seed: draw(this.#state.n) }));
    find("n").addEventListener("change", (event) => this.#count(Number(event.target.value)));
    find("model-choice").addEventListener("change", (event) => onChange({ model: event.target.value }));
  }

  /** Show what a model takes. */
  offer(model, models) {
    this.#class.classes = model.classes;
    this.#mix.classes = model.classes;
    find("mix-field").hidden = !model.stages;
    find("psi-field").hidden = model.truncation_psi.meaning === "none";
    const counts = COUNTS.filter((n) => n <= model.limits.max_images_per_request);
    find("n").replaceChildren(...counts.map(segment));
    find("n-field").hidden = counts.length < 2;
    const choice = find("model-choice");
    choice.hidden = models.length < 2;
    choice.replaceChildren(...models.map(({ name }) => new Option(name, name)));
    choice.value = model.name;
  }

  /** Show the state. */
  show(state, nameOf) {
    this.#state = state;
    this.#class.value = state.class;
    this.#mix.value = state.mix;
    find("unmix").hidden = find("weight-field").hidden = state.mix === "";
    find("weight").value = state.weight;
    const second = Math.round(100 * state.weight);
    find("weight-first").textContent = `${nameOf(state.class)} ${100 - second} %`;
    find("weight-second").textContent = `${nameOf(state.mix)} ${second} %`;
    if (document.activeElement !== find("seed")) find("seed").value = state.seed;
    find("previous").disabled = neighbour(state.seed, -1) === null;
    find("next").disabled = neighbour(state.seed, state.n) === null;
    find("psi").value = state.psi;
    find("psi-value").textContent = typeof state.psi === "number" ? state.psi.toFixed(2) : state.psi;
    for (const radio of find("n").querySelectorAll("input")) radio.checked = Number(radio.value) === state.n;
  }

  /** Go to the next images, or to those before: as far as there are images on the page. */
  #step(direction) {
    const seed = neighbour(this.#state.seed, direction * this.#state.n) ?? (direction < 0 ? "0" : null);
    if (seed !== null) this.#onChange({ seed });
  }

  #count(n) {
    const seed = /^\d+$/.test(this.#state.seed) ? Number(this.#state.seed) : NaN;
    const last = MAX_SEED + 1 - n;
    this.#onChange(seed > last && seed <= MAX_SEED ? { n, seed: String(last) } : { n });
  }
}

function segment(n) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  radio.type = "radio";
  radio.name = "n";
  radio.value = n;
  label.append(radio, n);
  return label;
}
