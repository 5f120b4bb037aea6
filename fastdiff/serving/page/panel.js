// Pictures that come: their progress, what there is to say about it, and one run at a time.

import { run } from "./api.js";
import { watch } from "./chart.js";

export const source = (png) => `data:image/png;base64,${png}`;

export const element = (tag, properties) => Object.assign(document.createElement(tag), properties);

/** Grey noise, for pictures of which nothing is seen yet. */
function noise(height, width) {
  const sheet = element("canvas", { width, height });
  const pixels = new ImageData(width, height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.fill(64 + 128 * Math.random(), i, i + 3)[i + 3] = 255;
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  return sheet.toDataURL();
}

export class Panel {
  /** @param onPick Called with the number of the picture that was chosen. */
  constructor(root, onPick) {
    const [note, progress, stop, error, list] = [".note", "progress", ".cancel", ".error", ".gallery"].map((name) =>
      root.querySelector(name),
    );
    Object.assign(this, { root, onPick, note, progress, stop, error, list, running: null, pictures: null });
    stop.onclick = () => this.cancel();
    addEventListener("pagehide", stop.onclick);
  }

  /** Give up what is running. */
  cancel() {
    this.running?.abort();
  }

  clear() {
    this.cancel();
    this.rest();
    this.pictures = null;
    this.list.replaceChildren();
    this.say("");
    this.error.textContent = "";
  }

  rest() {
    // A button that goes takes the focus with it.
    if (document.activeElement === this.stop) this.root.parentElement.querySelector("form .primary").focus();
    this.running = null;
    this.stop.hidden = this.progress.hidden = true;
    this.list.ariaBusy = null;
  }

  /** Screen readers speak what is written here, and so nothing is written twice. */
  say(text) {
    if (this.note.textContent !== text) this.note.textContent = text;
  }

  /** A picture of noise for each alternative text; `shape` is [C, H, W]. */
  lay(names, [, height, width]) {
    this.list.style.setProperty("--columns", Math.min(8, Math.ceil(Math.sqrt(names.length))));
    this.list.classList.toggle("small", Math.max(height, width) <= 64);
    const items = names.map((alt, i) => {
      const item = element("li");
      const button = element("button", { disabled: true, onclick: () => this.onPick(i) });
      button.append(element("img", { alt, width, height, src: noise(Math.min(height, 64), Math.min(width, 64)) }));
      item.append(button);
      return item;
    });
    this.list.replaceChildren(...items);
  }

  put(first, pngs) {
    const images = this.list.querySelectorAll("img");
    pngs.forEach((png, i) => (images[first + i].src = source(png)));
  }

  finish(pictures) {
    this.pictures = pictures;
    this.put(0, pictures);
    for (const button of this.list.querySelectorAll("button")) button.disabled = false;
  }

  /** Run a request and show it. Returns PNGs in base64; null where there are none, and then it is said why. */
  async run(body, names, shape) {
    this.clear();
    const running = (this.running = new AbortController());
    const { signal } = running;
    const isMine = () => this.running === running;
    this.lay(names, shape);
    this.say("Sampling");
    if (this.root.getBoundingClientRect().top > innerHeight / 2) this.root.scrollIntoView({ block: "nearest" });
    this.progress.removeAttribute("value");
    this.stop.hidden = this.progress.hidden = false;
    this.list.ariaBusy = "true";
    const onEvent = (name, data) => {
      if (!isMine()) return;
      watch();
      if (name === "preview") return this.put(data.samples[0], data.images);
      this.say("Sampling");
      Object.assign(this.progress, { max: data.total || 1, value: data.done });
    };
    const onWait = (sentence, seconds) => isMine() && this.say(`${sentence.replace(/\.?$/, ".")} Trying again in ${seconds} s.`);
    try {
      const { images, seconds } = await run(body, { signal, onEvent, onWait });
      if (!isMine()) return null;
      this.finish(images);
      this.say(`${images.length} ${images.length === 1 ? "picture" : "pictures"} in ${seconds.toFixed(2)} s`);
      return images;
    } catch (error) {
      if (!isMine()) return null;
      if (signal.aborted) this.say("Cancelled");
      else this.fail(error);
      return null;
    } finally {
      watch();
      if (isMine()) this.rest();
    }
  }

  /** Say what the server refused. */
  fail(error) {
    this.say("");
    this.list.replaceChildren();
    this.error.textContent = error.message;
    if (error.status === 401) document.dispatchEvent(new Event("key-wanted"));
    if (!("status" in error)) throw error;
  }
}
