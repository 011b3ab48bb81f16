// One job at a time, and always the newest: a slider may move as it likes and never floods the server.

export class Latest {
  #job;
  #onError;
  #patienceMs;
  #waiting = null;
  #controller = null;
  #began = 0;
  #timer = null;

  /**
   * `job(input, signal)` is run for the newest input. A job that something newer waits for is aborted when it is
   * older than `patienceMs`: a quick one is let through, so that an image shows while the slider still moves.
   */
  constructor(job, onError, patienceMs = 250) {
    this.#job = job;
    this.#onError = onError;
    this.#patienceMs = patienceMs;
  }

  submit(input) {
    this.#waiting = { input };
    if (this.#controller === null) {
      this.#run();
    } else if (this.#timer === null) {
      const leftMs = Math.max(0, this.#patienceMs - (performance.now() - this.#began));
      this.#timer = setTimeout(() => this.#controller?.abort(), leftMs);
    }
  }

  /** Give up what is under way and what waits. */
  cancel() {
    this.#waiting = null;
    this.#controller?.abort();
  }

  async #run() {
    while (this.#waiting !== null) {
      const { input } = this.#waiting;
      this.#waiting = null;
      this.#controller = new AbortController();
      this.#began = performance.now();
      try {
        await this.#job(input, this.#controller.signal);
      } catch (error) {
        if (error.name !== "AbortError") this.#onError(error);
      }
      clearTimeout(this.#timer);
      this.#timer = null;
    }
    this.#controller = null;
  }
}
