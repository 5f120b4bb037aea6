// How full the engine's batches are. Asked once a second while the server works and the page is seen.

import { get, sleep } from "./api.js";

const SHOWN = 48;
const $ = (id) => document.getElementById(id);
const figure = $("load");
let looks = false;

function draw({ recent_fill, running_images, queued_images }) {
  const bars = recent_fill.slice(-SHOWN);
  const first = SHOWN - bars.length;
  const path = bars.map((fill, i) => `M${2 * (first + i) + 1} 24V${24 - 24 * fill}`).join("");
  const mean = bars.reduce((sum, fill) => sum + fill, 0) / bars.length;
  figure.querySelector("path").setAttribute("d", path);
  $("fill").textContent = bars.length ? `${Math.round(100 * mean)} %` : "";
  $("queue").textContent = `${running_images} running, ${queued_images} waiting`;
  figure.hidden = false;
}

/** Look now, and on as long as the server has work. */
export async function watch() {
  if (looks) return;
  looks = true;
  try {
    for (let isBusy = true; isBusy && !document.hidden; ) {
      const stats = await get("v1/stats");
      draw(stats);
      isBusy = stats.running_images + stats.queued_images > 0;
      if (isBusy) await sleep(1);
    }
  } catch {
    // Whoever samples is told that the server is gone, and by then this is asked again.
  } finally {
    looks = false;
  }
}

document.addEventListener("visibilitychange", () => figure.hidden || watch());
