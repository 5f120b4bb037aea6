// A picture on the table: vary it, fill in a part of it, go on with what came out.

import * as mask from "./mask.js";
import { packMask, unpackMask } from "./link.js";
import { Panel, source } from "./panel.js";

const RESULTS = 4;
// From the last move of the slider to the request.
const SETTLED_MS = 250;

const $ = (id) => document.getElementById(id);
const dialog = $("editor");
const form = $("edit");
const frame = dialog.querySelector(".frame");
const panel = new Panel($("edit-panel"), (of) => push(of, panel.pictures[of], here().names[of], here().label));
// What was put on the table, the last is seen: {of, png, title, label, edit, names, pictures}.
let trail = [];
let page = null;
let timer = null;

const here = () => trail[trail.length - 1];
const fills = () => form.elements.kind.value === "fill";

/** @param context {info, common: what every request says of these labels, onChange: the address is another}. */
export const setUp = (context) => (page = context);

/** The edits that lead to what is seen. */
export const edits = () => trail.filter(({ edit }) => edit).map(({ of, edit }) => ({ ...edit, of }));

function show() {
  const { png, title, edit, names, pictures } = here();
  const [, height, width] = page.info.image_shape;
  Object.assign(frame.querySelector("img"), { src: source(png), alt: title });
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.classList.toggle("small", Math.max(height, width) <= 64);
  $("title").textContent = title[0].toUpperCase() + title.slice(1);
  dialog.querySelector(".back").hidden = trail.length < 2;
  $("download").href = source(png);
  $("download").download = `${`${page.info.model} ${title}`.replace(/[^\w.]+/g, "-")}.png`;
  if (edit) {
    form.elements.kind.value = edit.kind;
    $("edit-seed").value = edit.seed;
    if (!fills()) $("strength").value = edit.how;
    $("strength").dispatchEvent(new Event("input"));
  }
  mask.begin(height, width, edit?.kind === "fill" ? unpackMask(edit.how, height * width) : null);
  panel.clear();
  if (pictures) {
    panel.lay(names, page.info.image_shape);
    panel.finish(pictures);
  }
  showKind();
}

function showKind() {
  for (const part of form.querySelectorAll("[data-for]")) part.hidden = (part.dataset.for === "fill") !== fills();
  frame.querySelector("canvas").hidden = !fills();
  $("strength").disabled = fills();
  $("brush").disabled = !fills();
  form.querySelector(".primary").textContent = fills() ? "Fill in" : "Vary";
}

/** Put picture number `of` on the table, with a seed that is not the one that it came by. */
function push(of, png, title, label) {
  trail.push({ of, png, title, label });
  $("edit-seed").value = BigInt.asUintN(64, BigInt($("edit-seed").value) + 1n);
  show();
  page.onChange();
}

/** Open the editor on a sample. */
export function open(of, png, title, label, seed) {
  $("edit-seed").value = seed;
  push(of, png, title, label);
  dialog.showModal();
}

/** Returns whether there are pictures. */
async function run() {
  clearTimeout(timer);
  const step = here();
  if (fills() && !mask.painted.includes(1)) {
    panel.error.textContent = "Paint over a part of the picture first.";
    return false;
  }
  const kind = form.elements.kind.value;
  const how = fills() ? packMask(mask.painted) : String(Number($("strength").value));
  const seed = $("edit-seed").value;
  const num = Math.min(RESULTS, page.info.limits.num);
  const what = fills() ? "filled in" : `variation by ${how}`;
  step.edit = { kind, how, seed };
  step.names = Array.from({ length: num }, (_, i) => `${what}, ${i + 1} of ${num}, seed ${seed}`);
  // A mask is filled by RePaint, whatever sampled the picture.
  const changes = fills() ? { mask: mask.toPng(), sampler: undefined } : { strength: Number(how) };
  const body = { ...page.common(Array(num).fill(step.label)), num, seed, image: step.png, ...changes };
  page.onChange();
  step.pictures = await panel.run(body, step.names, page.info.image_shape);
  return step.pictures !== null;
}

/** Do again what a link says, one edit after the other; the first is of the picture on the table. */
export async function replay(list) {
  for (const [i, edit] of list.entries()) {
    if (i && edit.of >= panel.pictures.length) return;
    if (i) panel.onPick(edit.of);
    here().edit = edit;
    show();
    form.querySelector(":checked").focus();
    if (!(await run())) return;
  }
}

form.onsubmit = (event) => (event.preventDefault(), run());
form.onchange = (event) => event.target.name === "kind" && showKind();

form.oninput = ({ target }) => {
  if (!target.id.startsWith("strength")) return;
  clearTimeout(timer);
  timer = setTimeout(() => dialog.open && form.checkValidity() && run(), SETTLED_MS);
};

dialog.querySelector(".back").onclick = () => {
  trail.pop();
  show();
  page.onChange();
};
dialog.querySelector(".close").onclick = () => dialog.close();
dialog.onclose = () => {
  panel.clear();
  trail = [];
  page.onChange();
};
