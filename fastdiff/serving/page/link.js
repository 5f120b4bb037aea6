// The address of a picture: all that it depends on stands behind the "#", so that the link shows it again.

const FIELDS = ["sampler", "steps", "label", "guidance", "num", "seed"];

/** Lengths of the runs of a mask, known pixels first, in base 36: short for what a brush paints, at any size. */
export function packMask(painted) {
  const runs = [0];
  painted.forEach((value, i) => {
    if (value !== (i ? painted[i - 1] : 0)) runs.push(0);
    runs[runs.length - 1]++;
  });
  return runs.map((run) => run.toString(36)).join(".");
}

export function unpackMask(text, size) {
  const painted = new Uint8Array(size);
  let at = 0;
  text.split(".").forEach((run, i) => painted.fill(i % 2, at, (at += parseInt(run, 36) || 0)));
  return painted;
}

/** Settings, and the edits that follow, each of a picture of the one before. */
export function toHash(settings, edits) {
  const query = new URLSearchParams();
  for (const name of FIELDS) if (name in settings) query.set(name, settings[name]);
  for (const { of, kind, how, seed } of edits) query.append("edit", [of, kind, how, seed].join("-"));
  return `#${query}`;
}

export function fromHash(hash) {
  const query = new URLSearchParams(hash.slice(1));
  const settings = Object.fromEntries(FIELDS.filter((name) => query.has(name)).map((name) => [name, query.get(name)]));
  const edits = query.getAll("edit").flatMap((text) => {
    const [, of, kind, how, seed] = /^(\d+)-(vary|fill)-([0-9a-z.]+)-(\d+)$/.exec(text) ?? [];
    return kind ? [{ of: Number(of), kind, how, seed }] : [];
  });
  return { settings, edits };
}
