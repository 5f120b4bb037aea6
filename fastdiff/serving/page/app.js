// The page: settings, samples, and the address that shows them again.

import { Refusal, call, get, pause, setKey, sleep } from "./api.js";
import * as editor from "./editor.js";
import { fromHash, toHash } from "./link.js";
import { Panel, element } from "./panel.js";

const $ = (id) => document.getElementById(id);
const each = (selector, action) => document.querySelectorAll(selector).forEach(action);
const form = $("settings");
const panel = new Panel($("main-panel"), (i) => editor.open(i, panel.pictures[i], names[i], labels[i], shown.seed));
// Pictures of a run that are seen on their way: few where motion is unwelcome or the pictures are large.
const [FRAMES, FEW_FRAMES] = [25, 3];
const MANY_PIXELS = 2 ** 19;

let info = null;
// Settings of the pictures that are shown, and their labels (null without classes) and names.
let shown = null;
let labels = [];
let names = [];

/** A slider beside a number. With `log` its middle is the geometric mean. */
function slider(id, { min, max, step = 1, log = false }) {
  const number = $(id);
  const [there, back] = log
    ? [(value) => Math.round(100 * Math.log(value)), (place) => Math.min(max, Math.round(Math.exp(place / 100)))]
    : [(value) => value, (place) => place];
  const limits = { min: there(min), max: there(max), step };
  const range = element("input", { id: `${id}-range`, type: "range", tabIndex: -1, ariaHidden: "true", ...limits });
  number.addEventListener("input", () => (range.value = there(Number(number.value))));
  range.addEventListener("input", () => (number.value = back(Number(range.value))));
  number.before(range);
  number.dispatchEvent(new Event("input"));
}

const option = (value, textContent) => element("option", { value, textContent });
const classes = () => (info.classes ?? []).filter(({ number }) => number !== info.null_label);

/** Fill the form with what the server can do. */
function fillIn() {
  const [channels, height, width] = info.image_shape;
  $("model").textContent = `${info.model} · ${width} × ${height}${channels === 1 ? ", grey" : ""} · ${info.version}`;
  document.title = `${info.model} · fastdiff`;
  for (const isStochastic of [false, true]) {
    const group = element("optgroup", { label: isStochastic ? "with noise in each step" : "without further noise" });
    group.append(...info.samplers.filter((one) => one.stochastic === isStochastic).map(({ name }) => option(name, name)));
    if (group.children.length) $("sampler").append(group);
  }
  $("sampler").value = info.default.sampler;
  Object.assign($("steps"), { max: info.limits.steps, value: info.default.steps });
  Object.assign($("num"), { max: info.limits.num, value: Math.min(4, info.limits.num) });
  $("brush").value = Math.max(1, Math.round(width / 5));
  slider("steps", { min: 1, max: info.limits.steps, log: true });
  slider("num", { min: 1, max: Math.min(64, info.limits.num) });
  slider("guidance", { min: 1, max: 8, step: 0.25 });
  slider("strength", { min: 0, max: 1, step: 0.05 });
  slider("brush", { min: 1, max: Math.max(2, Math.round(Math.max(height, width) / 2)) });
  if (classes().length) {
    $("label").append(option("turn", "each in turn"));
    if (info.null_label !== null) $("label").append(option("none", "none"));
    for (const { number, name } of classes())
      $("label").append(option(number, name === String(number) ? name : `${number} · ${name}`));
    $("label").parentElement.hidden = $("label").disabled = false;
  }
  $("guidance").parentElement.hidden = !info.can_guide;
  form.hidden = false;
}

function read() {
  const settings = { sampler: $("sampler").value, steps: $("steps").value, num: $("num").value, seed: $("seed").value };
  if (classes().length) settings.label = $("label").value;
  if (Number($("guidance").value) !== 1) settings.guidance = $("guidance").value;
  return settings;
}

function write(settings) {
  for (const [name, value] of Object.entries({ guidance: 1, ...settings })) {
    $(name).value = value;
    $(name).dispatchEvent(new Event("input"));
  }
}

function labelOf(i) {
  const { label } = shown;
  if (label === undefined) return null;
  if (label === "turn") return classes()[i % classes().length].number;
  return label === "none" ? info.null_label : Number(label);
}

function nameOf(i) {
  const name = info.classes?.find(({ number }) => number === labels[i])?.name;
  const label = labels[i] === null ? "" : `, label ${labels[i] === info.null_label ? "none" : name}`;
  return `sample ${i + 1} of ${labels.length}, seed ${shown.seed}${label}`;
}

/** What a request says whatever is made of it: samples, variations, parts filled in. */
function common(numbers) {
  const [, height, width] = info.image_shape;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const frames = isStill || numbers.length * height * width > MANY_PIXELS ? FEW_FRAMES : FRAMES;
  const body = { sampler: shown.sampler, steps: Number(shown.steps) };
  const { previews } = info.samplers.find(({ name }) => name === body.sampler) ?? {};
  if (previews) body.previews = Math.max(1, Math.ceil(body.steps / frames));
  if (numbers[0] !== null) body.labels = numbers;
  if (shown.guidance && numbers[0] !== info.null_label) body.guidance = Number(shown.guidance);
  return body;
}

async function sample() {
  shown = read();
  labels = Array.from({ length: Number(shown.num) }, (_, i) => labelOf(i));
  names = labels.map((_, i) => nameOf(i));
  const body = { ...common(labels), num: labels.length, seed: shown.seed };
  const pictures = await panel.run(body, names, info.image_shape);
  $("main-panel").querySelector(".share").hidden = !pictures;
  return pictures;
}

/** Do what the address says; nothing where it says nothing. */
async function follow() {
  const { settings, edits } = fromHash(location.hash);
  $("editor").close();
  if (!location.hash) return;
  write(settings);
  if (!form.reportValidity()) return;
  const pictures = await sample();
  if (!pictures || !edits.length || edits[0].of >= pictures.length) return;
  panel.onPick(edits[0].of);
  await editor.replay(edits);
}

async function start() {
  for (let attempt = 0; !info; attempt++) {
    try {
      await call("ready");
      info = await get("v1/info");
    } catch (error) {
      if (!(error instanceof Refusal && error.passes)) return panel.fail(error);
      const seconds = pause(error, attempt);
      panel.say(`${error.status ? "The server is not ready." : error.message} Trying again in ${seconds} s.`);
      await sleep(seconds);
    }
  }
  panel.say("");
  fillIn();
  const onChange = () => history.replaceState(null, "", toHash(shown, editor.edits()));
  editor.setUp({ info, common, onChange });
  addEventListener("popstate", follow);
  await follow();
  if (!shown) panel.lay(Array(Number($("num").value)).fill("noise"), info.image_shape);
}

form.onsubmit = (event) => {
  event.preventDefault();
  const hash = toHash(read(), []);
  if (hash !== location.hash) history.pushState(null, "", hash);
  sample();
};

const RULE = { pattern: "[0-9]{1,20}", title: "a whole number below 2^64", inputMode: "numeric", autocomplete: "off" };
each(".seed", (input) => Object.assign(input, { ...RULE, required: true }));
each(".dice", (dice) => {
  dice.onclick = () => ([dice.previousElementSibling.value] = crypto.getRandomValues(new Uint32Array(1)));
});
each(".share", (share) => {
  share.onclick = async () => {
    // Only pages by https or of this machine may use the clipboard.
    const isCopied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
    share.textContent = isCopied ? "Copied" : "It is in the address bar";
    setTimeout(() => (share.textContent = "Copy link"), 3000);
  };
});

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key-form").hidden = true;
  panel.error.textContent = "";
  if (!info) start();
};
document.addEventListener("key-wanted", () => {
  $("editor").close();
  $("key-form").hidden = false;
  $("key").focus();
});

start();
