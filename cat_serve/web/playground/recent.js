// The images that were looked at last, to go back to; kept in memory, newest first.

const MOST = 24;

export class Recent {
  #section;
  #list;
  #onChoose;
  #entries = [];

  /** `onChoose` gets the hash of an entry. */
  constructor(section, onChoose) {
    this.#section = section;
    this.#list = section.querySelector("ol");
    this.#onChoose = onChoose;
  }

  /** Put an image first; one with the same hash moves there. */
  add(hash, blob, label) {
    const known = this.#entries.findIndex((each) => each.hash === hash);
    const [entry] = known >= 0 ? this.#entries.splice(known, 1) : [this.#make(hash, blob, label)];
    this.#entries.unshift(entry);
    for (const old of this.#entries.splice(MOST)) URL.revokeObjectURL(old.address);
    this.#list.replaceChildren(...this.#entries.map((each) => each.item));
    for (const each of this.#entries) {
      each.item.firstChild.setAttribute("aria-current", each === entry);
    }
    this.#section.hidden = this.#entries.length < 2;
  }

  #make(hash, blob, label) {
    const address = URL.createObjectURL(blob);
    const image = new Image();
    image.src = address;
    image.alt = "";
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.title = label;
    button.append(image);
    button.addEventListener("click", () => this.#onChoose(hash));
    const item = document.createElement("li");
    item.append(button);
    return { hash, address, item };
  }
}
