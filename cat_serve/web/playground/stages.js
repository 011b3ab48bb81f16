// The stages of an image side by side; each can be looked at alone.

import { ask } from "./api.js";
import { Latest } from "./latest.js";
import { SHARP_BELOW_PX } from "./picture.js";
import { query, request } from "./state.js";

export class Stages {
  #section;
  #strip;
  #onChoose;
  #work;
  #wanted = null;
  #made = "";

  /** `onChoose` gets a stage from 1, or 0 for the last, the image itself; `onError` what went wrong. */
  constructor(section, onChoose, onError) {
    this.#section = section;
    this.#strip = section.querySelector(".strip");
    this.#onChoose = onChoose;
    this.#work = new Latest((wanted, signal) => this.#make(wanted, signal), onError);
    section.addEventListener("toggle", () => this.#refresh());
  }

  /** Show the stages of this state's first image, once somebody looks at them. */
  show(state, model) {
    this.#section.hidden = model.stages < 2;
    this.#wanted = { state, model };
    this.#refresh();
  }

  #refresh() {
    if (!this.#section.open || this.#section.hidden || this.#wanted === null) return;
    const { state, model } = this.#wanted;
    this.#mark(state.stage, model.stages);
    if (this.#made !== keyOf(state)) this.#work.submit(this.#wanted);
  }

  async #make({ state, model }, signal) {
    const items = [];
    for (let stage = 1; stage <= model.stages; stage += 1) {
      const asked = { ...request({ ...state, n: 1, stage }, model.first) };
      const answer = await ask(`generate?${query(asked)}`, { signal });
      items.push(await this.#item(await answer.blob(), stage, model));
    }
    for (const image of this.#strip.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    this.#strip.replaceChildren(...items);
    this.#made = keyOf(state);
    this.#mark(this.#wanted.state.stage, model.stages);
  }

  async #item(blob, stage, model) {
    const image = new Image();
    image.src = URL.createObjectURL(blob);
    image.alt = "";
    image.className = Math.max(...model.image_size) < SHARP_BELOW_PX ? "sharp" : "";
    await image.decode();
    const button = document.createElement("button");
    button.type = "button";
    button.append(image, `Stage ${stage} of ${model.stages}`);
    button.addEventListener("click", () => this.#onChoose(stage === model.stages ? 0 : stage));
    return button;
  }

  #mark(chosen, count) {
    [...this.#strip.children].forEach((button, i) => {
      button.setAttribute("aria-pressed", i + 1 === (chosen || count));
    });
  }
}

/** Return what decides the strip: everything but the stage and the number of images. */
function keyOf(state) {
  return JSON.stringify(request({ ...state, n: 1, stage: 0 }, "")) + state.model;
}
