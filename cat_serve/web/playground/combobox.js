// A class field after the ARIA pattern for an editable combobox with a list.

import { search } from "./search.js";

export class Combobox {
  #input;
  #popup = document.createElement("div");
  #note = document.createElement("p");
  #list = document.createElement("ul");
  #classes = [];
  #shown = [];
  #active = -1;
  #value = "";
  #onChoose;

  /** `onChoose` gets the index of the class, as text, when somebody chose one. */
  constructor(box, onChoose) {
    this.#input = box.querySelector("input");
    this.#onChoose = onChoose;
    this.#list.id = `${this.#input.id}-list`;
    this.#list.setAttribute("role", "listbox");
    this.#list.setAttribute("aria-label", "Classes");
    this.#note.className = "note";
    this.#note.setAttribute("role", "status");
    this.#popup.className = "popup";
    this.#popup.append(this.#note, this.#list);
    this.#popup.hidden = true;
    box.append(this.#popup);
    for (const [name, value] of Object.entries({
      role: "combobox", autocomplete: "off", spellcheck: "false",
      "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": this.#list.id,
    })) this.#input.setAttribute(name, value);
    this.#listen();
  }

  set classes(classes) {
    this.#classes = classes;
    this.#close();
  }

  /** Show the class with this index; one that the model does not have is shown as it is. */
  set value(index) {
    this.#value = index;
    if (document.activeElement !== this.#input || this.#popup.hidden) this.#input.value = this.#label();
  }

  #label() {
    const chosen = this.#classes.find((each) => String(each.index) === this.#value);
    return chosen ? chosen.name : this.#value;
  }

  #listen() {
    const input = this.#input;
    input.addEventListener("input", () => this.#open(input.value));
    input.addEventListener("focus", () => input.select());
    input.addEventListener("click", () => this.#popup.hidden && this.#open(""));
    input.addEventListener("blur", () => this.#close());
    input.addEventListener("keydown", (event) => this.#key(event));
    // Pressing the mouse must not take the focus away, or the list would close before the click.
    this.#popup.addEventListener("mousedown", (event) => event.preventDefault());
    this.#list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#choose([...this.#list.children].indexOf(option));
    });
  }

  #key(event) {
    const closed = this.#popup.hidden;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      if (closed) this.#open("");
      else this.#move(this.#active + step);
    } else if (event.key === "Enter" && !closed && this.#active >= 0) {
      this.#choose(this.#active);
    } else if (event.key === "Escape" && !closed) {
      this.#close();
      this.#input.select();
    } else {
      return;
    }
    event.preventDefault();
  }

  #open(typed) {
    const { found, near } = search(this.#classes, typed);
    this.#shown = found.length ? found : near;
    this.#list.replaceChildren(...this.#shown.map((each, i) => this.#option(each, i)));
    this.#note.textContent = found.length ? "" : `No class is called ${typed}.${near.length ? " Nearly:" : ""}`;
    this.#note.hidden = found.length > 0;
    this.#list.hidden = this.#shown.length === 0;
    this.#popup.hidden = false;
    this.#input.setAttribute("aria-expanded", "true");
    const current = typed === "" ? this.#shown.findIndex((each) => String(each.index) === this.#value) : 0;
    this.#move(Math.max(0, current));
  }

  #option({ index, name }, i) {
    const option = document.createElement("li");
    option.id = `${this.#list.id}-${i}`;
    option.setAttribute("role", "option");
    const number = document.createElement("span");
    number.textContent = index;
    option.append(name, " ", number);
    return option;
  }

  #move(to) {
    if (!this.#shown.length) {
      this.#active = -1;
      this.#input.removeAttribute("aria-activedescendant");
      return;
    }
    this.#active = (to + this.#shown.length) % this.#shown.length;
    [...this.#list.children].forEach((option, i) => option.setAttribute("aria-selected", i === this.#active));
    const option = this.#list.children[this.#active];
    this.#input.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  }

  #choose(i) {
    this.#value = String(this.#shown[i].index);
    this.#close();
    this.#onChoose(this.#value);
  }

  #close() {
    this.#popup.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#input.removeAttribute("aria-activedescendant");
    this.#input.value = this.#label();
  }
}
