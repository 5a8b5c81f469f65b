// Calls to the server: its models, uploads, answers as they arrive, and its errors in plain words.

const KEY = "shoulders.key"; // of the session storage: the key is gone when the tab is closed

export const storedKey = () => sessionStorage.getItem(KEY) ?? "";

/** Keep the key for this tab; an empty one is forgotten. */
export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** A request that came to nothing. `message` is for people; `wait` are the seconds after which to try again. */
export class ServerError extends Error {
  constructor(message, { status = 0, wait = 0 } = {}) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

const GONE = "The server does not answer. It may have been stopped, or the network is down.";
const BROKEN = "The connection broke before the answer was complete.";
const WORDS = {
  401: () => (storedKey() ? "the server does not accept this API key" : "the server asks for an API key"),
  413: (said) => `that is more than the server takes: ${said}`,
  429: (said) => `the server is busy: ${said}`,
  503: (said) => `the server takes no questions now: ${said}`,
};

async function call(path, { method = "GET", headers = {}, body, signal } = {}) {
  const key = storedKey();
  const sent = key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
  let response;
  try {
    response = await fetch(path, { method, headers: sent, body, signal, cache: "no-store" });
  } catch (error) {
    throw signal?.aborted ? error : new ServerError(GONE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Return the error of a response that is no success. */
async function refusal(response) {
  const { status } = response;
  const content = await response.json().catch(() => null);
  const said = content?.error?.message ?? `it answered with status ${status}`;
  const asked = Number(response.headers.get("Retry-After"));
  const wait = status === 429 || status === 503 ? Math.max(asked || 1, 1) : 0;
  return new ServerError(sentence(WORDS[status]?.(said) ?? said), { status, wait });
}

/** Return a message of the server as a sentence. */
const sentence = (said) => said.charAt(0).toUpperCase() + said.slice(1) + (/[.?!]$/.test(said) ? "" : ".");

const asJson = (value) => ({ headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });

export const info = async () => (await call("v1/info")).json();

/** Return the models that answer questions, the bare one first. */
export async function models() {
  const { data } = await (await call("v1/models")).json();
  const answering = data.filter((model) => model.endpoints.includes("answer"));
  return answering.sort((one, other) => (one.parent !== null) - (other.parent !== null));
}

/** Upload files, or a text, to be asked; return the record of the upload. */
export async function upload(given, signal) {
  let sent = null;
  if (typeof given === "string") {
    sent = asJson({ texts: [given], name: "pasted text" });
  } else {
    sent = { body: new FormData() };
    for (const file of given) sent.body.append("file", file, file.name);
  }
  return (await call("v1/documents", { method: "POST", signal, ...sent })).json();
}

/** Remove an upload; one that has expired already is no loss. */
export const removeUpload = (id) =>
  call(`v1/documents/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => {});

/** Yield the JSON events of a stream. A stream that ends early is an error. */
async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new ServerError(BROKEN);
    });
    if (done) throw new ServerError(BROKEN);
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines
        .map((line) => line.slice(5))
        .join("\n")
        .trim();
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

const TRIES = 5; // of a question that a busy server puts off
const LONGEST_WAIT = 30; // seconds; after a longer one a person should decide

/** The answer of one model as it arrives. Whoever shows it listens for "change". */
export class Reply extends EventTarget {
  state = "waiting"; // waiting, answering, busy, done, stopped or failed
  text = "";
  evidence = null; // passages and candidates, before the answer
  result = null; // the whole answer, once it is there
  error = null;
  firstSeconds = null; // to the first piece of text
  seconds = null;
  again = 0; // when a busy server is asked again (performance.now)

  constructor(request) {
    super();
    this.request = request;
    this.model = request.model;
  }

  get finished() {
    return ["done", "stopped", "failed"].includes(this.state);
  }

  /** Ask, and ask again if the server is busy, until the answer is there, `signal` stops it, or it fails. */
  async run(signal) {
    for (let tried = 1; ; tried += 1) {
      try {
        await this.#stream(signal);
        return this.#become("done");
      } catch (error) {
        if (signal.aborted) return this.#become("stopped");
        const patient = error.wait && error.wait <= LONGEST_WAIT && tried < TRIES;
        if (!patient) return this.#fail(error);
        this.again = performance.now() + 1000 * error.wait;
        this.#become("busy");
        await pause(error.wait, signal);
        if (signal.aborted) return this.#become("stopped");
      }
    }
  }

  async #stream(signal) {
    Object.assign(this, { text: "", evidence: null, result: null, error: null, firstSeconds: null, seconds: null });
    this.started = performance.now();
    this.#become("waiting");
    const sent = asJson({ ...this.request, stream: true });
    const response = await call("v1/answer", { method: "POST", signal, ...sent });
    for await (const event of events(response, signal)) this.#take(event);
    if (!this.result) throw new ServerError(BROKEN);
  }

  #take(event) {
    const passed = (performance.now() - this.started) / 1000;
    if (event.error) throw new ServerError(sentence(event.error.message));
    if (event.type === "evidence") this.evidence = event;
    if (event.type === "delta") {
      this.firstSeconds ??= passed;
      this.text += event.text;
    }
    if (event.type === "answer") {
      this.firstSeconds ??= passed;
      this.seconds = passed;
      this.result = event;
      this.text = event.said;
    }
    this.#become("answering");
  }

  #fail(error) {
    this.error =
      error instanceof ServerError ? error : new ServerError(`The page could not read the answer: ${error.message}`);
    if (this.error.wait) this.error.message += ` It asks for ${Math.ceil(this.error.wait)} seconds.`;
    this.#become("failed");
  }

  #become(state) {
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}

/** Wait so many seconds, or until `signal` stops it. */
function pause(seconds, signal) {
  return new Promise((resume) => {
    const timer = setTimeout(resume, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resume()), { once: true });
  });
}

/** Return the command that asks the same of this server from a terminal; the key is read from the environment. */
export function curl(request) {
  const quoted = `'${JSON.stringify(request).replaceAll("'", "'\\''")}'`;
  const key = storedKey() ? ` \\\n  -H "Authorization: Bearer $SHOULDERS_API_KEY"` : "";
  const url = new URL("v1/answer", document.baseURI);
  return `curl ${url}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted}`;
}
