// A column: one model's answer, what it cost, and what it was read from. All text is set as text, never as HTML.

import { curl } from "./api.js";

/** Return a new element; `null` children are left out. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const fromTemplate = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** Return an element with a text in the direction of its own language. */
const text = (tag, words, className = "") => element(tag, { textContent: words, className, dir: "auto" });

export function percent(probability) {
  if (probability > 0 && probability < 0.0005) return "< 0.1%";
  return `${(100 * probability).toFixed(probability < 0.1 || probability > 0.99 ? 1 : 0)}%`;
}

const duration = (seconds) => (seconds === null ? "–" : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`);

/** Return what a model is in a few words: "soft prompt, 20 positions, prefix". */
export function described(model) {
  const size = model.length ? `, ${model.length} positions, ${model.placement}` : "";
  const passes = model.passes > 1 ? `, ${model.passes} passes` : "";
  return `${model.label}${size}${passes}${model.reads_passages ? ", reads passages" : ""}`;
}

const STATES = { waiting: "Waiting", answering: "Answering", stopped: "Stopped", failed: "Failed", done: "" };

/** The column of a reply, which shows itself as it arrives. */
export class Column {
  #drawing = 0;
  #read = null;

  /**
   * @param model as the server lists it
   * @param reply the answer of the model
   * @param first the answer of its first pass alone, for a model of several passes; otherwise null
   */
  constructor(model, reply, first) {
    Object.assign(this, { model, reply, first, root: fromTemplate("column") });
    Object.assign(this.part("h3"), { textContent: model.id, title: model.id });
    this.root.ariaLabel = model.id;
    this.part(".kind").textContent = described(model);
    for (const control of this.root.querySelectorAll("input, button")) {
      control.ariaLabel = `${control.ariaLabel}: ${model.id}`;
    }
    for (const one of [reply, first]) one?.addEventListener("change", () => this.#later());
    this.#show();
  }

  get best() {
    return this.part(".best").checked;
  }

  /** The replies that can be tried again. */
  get unfinished() {
    return [this.reply, this.first].filter((one) => one && ["failed", "stopped"].includes(one.state));
  }

  get command() {
    return curl(this.reply.request);
  }

  part(selector) {
    return this.root.querySelector(selector);
  }

  /** Show the time that has passed. */
  tick() {
    const { reply } = this;
    const left = Math.max(0, Math.ceil((reply.again - performance.now()) / 1000));
    this.part(".state").textContent = reply.state === "busy" ? `Busy, again in ${left} s` : STATES[reply.state];
    const running = reply.state === "waiting" || reply.state === "answering";
    this.#figure("first", duration(reply.firstSeconds));
    this.#figure("seconds", duration(running ? (performance.now() - reply.started) / 1000 : reply.seconds));
    this.#figure("tokens", reply.result?.usage.completion_tokens ?? "–");
    this.#figure("passes", reply.result?.passes ?? "–");
    this.#figure("probability", reply.result ? percent(reply.result.probability) : "–");
    this.root.style.setProperty("--probability", reply.result?.probability ?? 0);
    this.part(".threshold").hidden = !reply.result?.threshold;
    this.#figure("threshold", percent(reply.result?.threshold ?? 0));
  }

  /** Show changes once a frame: a fast model sends many pieces between two. */
  #later() {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#show();
    });
  }

  #show() {
    const { reply, first } = this;
    this.root.dataset.state = reply.state;
    this.root.ariaBusy = String([reply, first].some((one) => one && !one.finished));
    this.part(".again").hidden = !this.unfinished.length;
    this.part(".best").disabled = reply.state !== "done";
    this.tick();
    const last = this.model.passes === 2 ? "Second pass" : "Last pass";
    const shown = first ? [pass("First pass", first), pass(last, reply)] : answer(reply);
    this.part(".answer").replaceChildren(...shown);
    this.#showEvidence(reply.result ?? reply.evidence);
  }

  /** Show what was read, but only when it has changed, so that what a person has unfolded stays so. */
  #showEvidence(given) {
    if (given === this.#read) return;
    this.#read = given;
    this.part(".evidence").replaceChildren(...(given ? [...candidates(given), ...passages(given)] : []));
  }

  #figure(name, value) {
    this.part(`[data-figure=${name}]`).textContent = value;
  }
}

/** Return what is shown of an answer: its text, or why there is none. */
function answer(reply) {
  const { error, result, state } = reply;
  const shown = [];
  if (result?.answer === null) shown.push(...noAnswer(result));
  else if (reply.text) shown.push(text("p", reply.text, "said"));
  else if (state === "waiting" || state === "answering")
    shown.push(element("p", { className: "dots", ariaHidden: "true" }));
  if (error)
    shown.push(text("p", reply.text ? `${error.message} What had arrived stands above.` : error.message, "error"));
  if (result?.stage) shown.push(text("p", `Answered by stage ${result.stage}.`, "muted"));
  if (result?.doubt) shown.push(text("p", `Take care: ${result.doubt}.`, "muted"));
  return shown;
}

function noAnswer({ said, probability, threshold }) {
  const why = said
    ? `Its probability, ${percent(probability)}, is below the threshold of ${percent(threshold)}. It would have said:`
    : "The model ended its answer before the first word.";
  return [
    element("p", { className: "none", textContent: "No answer" }),
    element("p", { className: "muted", textContent: why }),
    said ? text("p", said, "said withheld") : null,
  ].filter((one) => one);
}

/** Return one pass of several, with its own answer and probability. */
function pass(name, reply) {
  const heading = element("h4", { textContent: name });
  const sure = reply.result
    ? element("p", { className: "muted number", textContent: percent(reply.result.probability) })
    : null;
  return element("section", { className: "pass" }, heading, ...answer(reply), sure);
}

function candidates({ candidates: sampled = [] }) {
  if (!sampled.length) return [];
  const rows = sampled.map(({ text: words, probability }) => {
    const sure = element("span", { className: "number", textContent: percent(probability) });
    return element("li", {}, text("span", words), sure);
  });
  return [
    element("h4", { textContent: "Candidates it sampled and read" }),
    element("ol", { className: "candidates" }, ...rows),
  ];
}

function passages({ passages: found = [], read = [], found: place = null, type }) {
  if (!found.length) return [];
  const left = found.filter((passage) => !passage.read);
  const shown = [
    element("h4", { textContent: `Read ${read.length} of ${found.length} passages found` }),
    element(
      "ol",
      { className: "passages" },
      ...read.map((one, number) => passage(one, place?.read === number ? place : null)),
    ),
  ];
  if (type === "answer" && !place) {
    shown.push(element("p", { className: "muted", textContent: "The answer stands in none of them." }));
  }
  if (left.length) {
    const list = element("ol", { className: "passages", start: 1 }, ...left.map((one) => passage(one, null)));
    const heading = element("summary", { textContent: `Found, not read: ${left.length}` });
    shown.push(element("details", { className: "left" }, heading, list));
  }
  return shown;
}

/** Return one passage, folded unless the answer stands in it. */
function passage({ title, text: words, score, page }, place) {
  const about = element(
    "span",
    { className: "about" },
    page && !title.endsWith(`page ${page}`) ? element("span", { textContent: `page ${page}` }) : null,
    element("span", { className: "muted", textContent: `score ${score?.toFixed(1) ?? "–"}` }),
    place ? element("span", { className: "holds", textContent: "has the answer" }) : null,
  );
  const heading = element("summary", {}, text("span", title || "Untitled", "title"), about);
  const body = element("p", { dir: "auto" }, ...highlighted(words, place));
  return element("li", {}, element("details", { open: Boolean(place) }, heading, body));
}

/** Return a text with the answer marked. The server counts characters by code points, JavaScript by halves of some. */
function highlighted(words, place) {
  if (!place) return [words];
  const points = Array.from(words);
  const part = (start, end) => points.slice(start, end).join("");
  return [part(0, place.start), element("mark", { textContent: part(place.start, place.end) }), part(place.end)];
}
