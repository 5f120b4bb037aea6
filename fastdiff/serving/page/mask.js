// Painting on a picture, by pointer and by keyboard. The canvas has the picture's own pixels; the style enlarges it.

import { element } from "./panel.js";

const $ = (id) => document.getElementById(id);
const canvas = document.querySelector(".frame canvas");
const ring = document.querySelector(".brush");
const spoken = $("cursor");
const brush = $("brush");
const erase = $("erase");

/** 1 where a pixel is to be made anew, row by row. */
export let painted;
let width, height, cursor;
let last = null;

const erases = () => erase.ariaPressed === "true";
const diameter = () => Math.max(Number(brush.value), 1);

function put(target, on, off) {
  const pixels = new ImageData(width, height);
  painted.forEach((value, i) => pixels.data.set(value ? on : off, 4 * i));
  target.getContext("2d").putImageData(pixels, 0, 0);
}

const draw = () => put(canvas, [214, 76, 60, 175], [0, 0, 0, 0]);

/** Paint a straight line of the brush, in pixels of the picture; at least the pixels that it goes through. */
function stroke(from, to) {
  const parts = Math.ceil(2 * Math.hypot(to.x - from.x, to.y - from.y)) || 1;
  const [radius, value] = [diameter() / 2, erases() ? 0 : 1];
  for (let i = 0; i <= parts; i++) {
    const x = from.x + ((to.x - from.x) * i) / parts;
    const y = from.y + ((to.y - from.y) * i) / parts;
    for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++)
      for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius); column++) {
        const isUnder = row === Math.floor(y) && column === Math.floor(x);
        if (isUnder || Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) painted[row * width + column] = value;
      }
  }
  draw();
}

function showRing({ x, y }) {
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  const [left, top, size] = [percent(x, width), percent(y, height), percent(diameter(), width)];
  Object.assign(ring.style, { left, top, width: size });
  ring.hidden = false;
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * width) / box.width, y: ((event.clientY - box.top) * height) / box.height };
}

canvas.onpointerdown = (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  last = cursor = at(event);
  stroke(last, last);
};
canvas.onpointermove = (event) => {
  showRing(at(event));
  if (last) stroke(last, (last = at(event)));
};
canvas.onpointerup = canvas.onpointercancel = () => (last = null);
canvas.onpointerleave = canvas.onblur = () => (ring.hidden = true);

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The middle of the pixel, within the picture. */
const centred = (x, y) => ({
  x: Math.min(Math.max(Math.floor(x), 0), width - 1) + 0.5,
  y: Math.min(Math.max(Math.floor(y), 0), height - 1) + 0.5,
});

canvas.onkeydown = (event) => {
  const from = centred(cursor.x, cursor.y);
  if (event.key in MOVES) {
    // A picture of many pixels is crossed in about thirty-two moves.
    const [right, down] = MOVES[event.key].map((way) => way * Math.max(1, Math.round(width / 32)));
    cursor = centred(from.x + right, from.y + down);
    if (event.shiftKey) stroke(from, cursor);
  } else if (event.key === " ") stroke(from, from);
  else if (event.key.toLowerCase() === "e") erase.click();
  else return;
  event.preventDefault();
  showRing(cursor);
  const [row, column] = [Math.floor(cursor.y), Math.floor(cursor.x)];
  const state = painted[row * width + column] ? "painted" : "kept";
  spoken.textContent = `row ${row + 1}, column ${column + 1}, ${state}${erases() ? ", erasing" : ""}`;
};
canvas.onfocus = () => canvas.matches(":focus-visible") && showRing(cursor);

erase.onclick = () => (erase.ariaPressed = String(!erases()));
$("clear").onclick = () => (painted.fill(0), draw());
$("invert").onclick = () => {
  painted = painted.map((value) => 1 - value);
  draw();
};

/** Begin with a mask, or with nothing painted. */
export function begin(imageHeight, imageWidth, mask) {
  [canvas.height, canvas.width] = [height, width] = [imageHeight, imageWidth];
  painted = mask ?? new Uint8Array(width * height);
  cursor = centred(width / 2, height / 2);
  draw();
}

/** Base64 of a PNG, white where a pixel is known. */
export function toPng() {
  const sheet = element("canvas", { width, height });
  put(sheet, [0, 0, 0, 255], [255, 255, 255, 255]);
  return sheet.toDataURL().split(",")[1];
}
