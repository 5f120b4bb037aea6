// The server's API. Addresses are relative to the page, so that a proxy may put both under a prefix.

const KEY = "fastdiff-api-key";
export const setKey = (key) => sessionStorage.setItem(KEY, key);

/** What the server refused, in its own sentence; status 0 where it did not answer at all. */
export class Refusal extends Error {
  constructor(status, sentence, retryAfter = null) {
    super(sentence);
    Object.assign(this, { status, retryAfter });
  }

  /** Whether the same may be granted later: no answer, a full queue, a server that is about to stop. */
  get passes() {
    return [0, 429, 502, 503].includes(this.status);
  }
}

export async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Refusal(0, "The server does not answer.");
  });
  if (response.ok) return response;
  const { detail } = await response.json().catch(() => ({}));
  const seconds = Number(response.headers.get("Retry-After")) || null;
  throw new Refusal(response.status, detail || `The server answered ${response.status}.`, seconds);
}

export const get = async (path) => (await call(path)).json();

/** The events of a request, [name, data] each. By fetch and not by EventSource, which cannot send a key. */
async function* events(path, signal) {
  const { body } = await call(path, { signal });
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const field = (name) => new RegExp(`^${name}: ?(.*)`, "m").exec(block)?.[1];
      if (field("data")) yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

export const sleep = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)));
    if (signal?.aborted) reject(signal.reason);
  });

/** Seconds before a further attempt: 1, 2, 4, 8, 8, ... */
export const pause = (refusal, attempt) => refusal.retryAfter ?? Math.min(2 ** attempt, 8);

/**
 * Have a request done, and return the data of "done". A server that is full, that is not there or that loses the
 * request is asked again, onWait(sentence, seconds) before: the same request gives the same pictures. The body's seed is
 * a string of digits, for numbers here end at 2^53. Aborting the signal cancels the request in the server as well.
 */
export async function run(body, { signal, onEvent, onWait }) {
  const text = JSON.stringify(body).replace(/"seed":"(\d+)"/, '"seed":$1');
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: text };
  let id = null;
  const cancel = () => id && call(`v1/requests/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
  signal.addEventListener("abort", cancel);
  for (let attempt = 0; ; attempt++) {
    try {
      // Without the signal: the id is what one cancels by.
      id ??= (await (await call("v1/images?wait=0", post)).json()).id;
      if (signal.aborted) cancel();
      for await (const [name, data] of events(`v1/requests/${id}/events`, signal)) {
        attempt = 0;
        if (name === "done") return data;
        if (name === "error") throw new Refusal(data.status, data.detail);
        onEvent(name, data);
      }
      throw new Refusal(0, "The server broke off.");
    } catch (error) {
      signal.throwIfAborted();
      // A stream that breaks is an error of the browser's own.
      const refusal = error instanceof Refusal ? error : new Refusal(0, "The server broke off.");
      const isLost = id && refusal.status === 404;
      if (!refusal.passes && !isLost) throw refusal;
      if (refusal.status) id = null;
      const seconds = pause(refusal, attempt);
      onWait(refusal.message, seconds);
      await sleep(seconds, signal);
    }
  }
}
