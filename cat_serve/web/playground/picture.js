// The image itself: one, or the grid as it came, cut into cells that can be picked.

// Smaller images are enlarged pixel by pixel: their pixels are what there is to see.
export const SHARP_BELOW_PX = 160;

export class Picture {
  #element;
  #onPick;
  #address = null;

  /** `onPick` gets the position of a cell, from 0, when somebody chose it. */
  constructor(element, onPick) {
    this.#element = element;
    this.#onPick = onPick;
  }

  /** Where the bytes that are shown can be had by a link. */
  get address() {
    return this.#address;
  }

  set busy(busy) {
    this.#element.setAttribute("aria-busy", busy);
  }

  /** Show a file of `n` images of `height` x `width` px; `labels` names each of them. */
  async show(blob, n, [height, width], labels) {
    const address = URL.createObjectURL(blob);
    const image = new Image();
    image.src = address;
    await image.decode();
    const grid = { columns: image.naturalWidth / width, rows: image.naturalHeight / height };
    this.#element.classList.toggle("sharp", Math.max(height, width) < SHARP_BELOW_PX);
    this.#element.classList.toggle("grid", n > 1);
    this.#element.style.setProperty("--ratio", n > 1 ? grid.columns / grid.rows * width / height : width / height);
    this.#element.style.setProperty("--columns", n > 1 ? grid.columns : 1);
    if (n > 1) {
      this.#element.replaceChildren(...labels.map((label, i) => this.#cell(address, i, grid, label)));
    } else {
      image.alt = labels[0];
      this.#element.replaceChildren(image);
    }
    if (this.#address !== null) URL.revokeObjectURL(this.#address);
    this.#address = address;
  }

  #cell(address, i, { columns, rows }, label) {
    const cell = document.createElement("button");
    cell.type = "button";
    cell.setAttribute("aria-label", label);
    cell.title = label;
    cell.style.backgroundImage = `url("${address}")`;
    cell.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    const [x, y] = [i % columns, Math.floor(i / columns)];
    cell.style.backgroundPosition = `${percent(x, columns)}% ${percent(y, rows)}%`;
    cell.addEventListener("click", () => this.#onPick(i));
    return cell;
  }
}

/** Return the background position that shows part `i` of `count`. */
function percent(i, count) {
  return count > 1 ? (100 * i) / (count - 1) : 0;
}
