// The page: what is asked, of which models, and what is done with the answers.

import { Reply, ServerError, info, models, removeUpload, storeKey, storedKey, upload } from "./api.js";
import { Column, described, element, fromTemplate } from "./column.js";
import * as saved from "./saved.js";

const $ = (id) => document.getElementById(id);
const MOST_SCAFFOLDS = 5; // beside the bare model: browsers hold six connections to a server at once
const CHOSEN_AT_FIRST = 2;
const SEEDS = 2 ** 32;
const THEME = "shoulders.theme"; // of the local storage

let served = []; // the models that answer questions
let limits = {}; // of the server
let uploaded = null; // record of the document that is asked
let uploading = null; // stops the upload that is under way
let shown = null; // the question whose answers are shown, with its columns
let controller = new AbortController(); // stops the answers
let running = 0; // rounds of answers that are under way

// Words to the person

/** Say something to those who do not see the page. */
function announce(words) {
  $("status").append(element("p", { textContent: words }));
  while ($("status").childElementCount > 5) $("status").firstElementChild.remove();
}

/** Show a notice above the answers, with a way out; without words, take it away. */
function notice(words = "", way = "", act = null) {
  const button = act && element("button", { type: "button", textContent: way, onclick: () => act() });
  $("notice").hidden = !words;
  $("notice").replaceChildren(...(button ? [words, " ", button] : [words]));
  $("notice").scrollIntoView({ block: "nearest" });
}

let toastTimer = 0;

/** Show for a moment that something has been done. */
function toast(words) {
  announce(words);
  Object.assign($("toast"), { textContent: words, hidden: false });
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 2500);
}

/** Put a text on the clipboard; where the browser gives a page without HTTPS none, show the text to be copied. */
async function copy(words, what) {
  try {
    await navigator.clipboard.writeText(words);
    toast(`${what} copied`);
  } catch {
    $("copy-value").value = words;
    $("copy").showModal();
    $("copy-value").select();
  }
}

function download(content, name) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// Models

/** Read what the server serves, and choose what the address of the page names. */
async function load() {
  notice();
  try {
    const about = await info();
    limits = about.limits;
    $("longest").max = limits.max_tokens;
    $("backbone").textContent = about.backbone;
    served = await models();
  } catch (error) {
    return failed(error);
  }
  showModels();
  applyAddress();
}

/** Show why the models could not be read, and a way out. */
function failed(error) {
  $("models-count").textContent = "Not known yet.";
  if (error.status === 401) notice(error.message, "Enter API key", openKey);
  else
    notice(
      error instanceof ServerError ? error.message : `The page could not start: ${error.message}`,
      "Try again",
      load,
    );
}

const boxes = () => [...$("models").querySelectorAll("input")];
const chosen = () => served.filter((_, number) => boxes()[number]?.checked);
const isBare = (model) => model.parent === null;

function showModels() {
  const items = served.map((model) => {
    const item = fromTemplate("model");
    Object.assign(item.querySelector("input"), { value: model.id, onchange: countModels });
    item.querySelector(".name").textContent = model.id;
    item.querySelector(".kind").textContent = described(model);
    return item;
  });
  $("models").replaceChildren(...items);
  $("find").hidden = served.length < 8;
}

/** Choose some models, and of scaffolds no more than can be asked at once. */
function choose(ids) {
  let left = MOST_SCAFFOLDS;
  for (const [number, box] of boxes().entries()) {
    box.checked = ids.includes(box.value) && (isBare(served[number]) || left-- > 0);
  }
  countModels();
}

function countModels() {
  const scaffolds = chosen().filter((model) => !isBare(model)).length;
  for (const [number, box] of boxes().entries()) {
    box.disabled = !box.checked && !isBare(served[number]) && scaffolds >= MOST_SCAFFOLDS;
  }
  $("models-count").textContent =
    served.length > 1
      ? `${scaffolds} of at most ${MOST_SCAFFOLDS} scaffolds chosen`
      : "Only the bare model is served. Scaffolds are added by: shoulders serve NAME…";
}

function filterModels() {
  const wanted = $("find").value.trim().toLowerCase();
  for (const item of $("models").children) item.hidden = !item.textContent.toLowerCase().includes(wanted);
}

// The address of the page holds what is asked

const settings = () => ({
  question: $("question").value,
  seed: Number($("seed").value),
  temperature: Number($("temperature").value),
  max_tokens: Number($("longest").value),
});

/** Return the address of a question, from "#" on; a document is not part of it. */
function addressOf({ question, seed, temperature, max_tokens: longest, answers }) {
  const named = answers.map(({ model }) => ["m", model]);
  return `#${new URLSearchParams([["q", question], ["seed", seed], ["t", temperature], ["n", longest], ...named])}`;
}

function applyAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("q")) {
    if (!chosen().length) choose(served.slice(0, 1 + CHOSEN_AT_FIRST).map((model) => model.id));
    return;
  }
  for (const [field, name] of [
    ["question", "q"],
    ["seed", "seed"],
    ["temperature", "t"],
    ["longest", "n"],
  ]) {
    if (given.has(name)) $(field).value = given.get(name);
  }
  const named = given.getAll("m");
  choose(named);
  const unknown = named.filter((id) => !served.some((model) => model.id === id));
  if (unknown.length) notice(`This server does not serve ${unknown.join(", ")}: left out.`);
}

// Asking

function ask() {
  $("question").value = $("question").value.trim();
  if (uploading || !$("ask").reportValidity()) return;
  const answering = chosen();
  if (!answering.length) return notice("Choose at least one model.");
  stop();
  notice();
  const replies = new Map();
  const replyOf = (id) => replies.get(id) ?? replies.set(id, new Reply(requestOf(id))).get(id);
  for (const model of answering) replyOf(model.id); // before the first passes: these wait for a free connection
  const columns = answering.map(
    (one) => new Column(one, replyOf(one.id), one.first_pass ? replyOf(one.first_pass) : null),
  );
  shown = { id: String(Date.now()), document: uploaded?.name ?? null, ...settings(), columns };
  $("columns").replaceChildren(...columns.map((column) => column.root));
  for (const column of columns) listen(column);
  history.pushState(null, "", addressOf(comparison()));
  announce(`Asking ${answering.map((model) => model.id).join(", ")}`);
  run([...replies.values()]);
}

function requestOf(model) {
  const { question, seed, temperature, max_tokens: longest } = settings();
  return {
    model,
    question,
    max_tokens: longest,
    ...(uploaded && { documents: uploaded.id }),
    ...(temperature > 0 && { temperature, seed }),
  };
}

function listen(column) {
  column.part(".curl").addEventListener("click", () => copy(column.command, "Command"));
  column.part(".again").addEventListener("click", () => {
    column.root.focus(); // the button goes away
    run(column.unfinished);
  });
}

/** Run some replies of the question that is shown, until all have answered, failed or been stopped. */
async function run(replies) {
  if (controller.signal.aborted) controller = new AbortController();
  const { signal } = controller;
  running += 1;
  showRunning();
  await Promise.all(
    replies.map(async (reply) => {
      await reply.run(signal);
      announce(
        `${reply.model}: ${reply.error?.message ?? reply.result?.answer ?? (reply.result ? "no answer" : "stopped")}`,
      );
    }),
  );
  running -= 1;
  showRunning();
}

function stop() {
  controller.abort();
}

function showRunning() {
  if (!running && document.activeElement === $("stop")) $("go").focus();
  $("stop").disabled = !running;
  $("empty").hidden = Boolean(shown);
  $("answers-tools").hidden = !shown;
  $("save").disabled = running > 0 || shown.columns.filter((column) => column.reply.result).length < 2;
}

// What is done with the answers

/** Return the comparison that is shown, as it is saved. */
function comparison() {
  const { columns, ...question } = shown;
  return { ...question, saved: new Date().toISOString(), answers: columns.map(answerOf) };
}

function answerOf({ reply, best }) {
  const {
    answer = null,
    said = reply.text,
    probability = null,
    threshold = 0,
    passes = null,
    usage,
  } = reply.result ?? {};
  return {
    model: reply.model,
    answer,
    said,
    probability,
    threshold,
    passes,
    tokens: usage?.completion_tokens ?? null,
    first_token_seconds: reply.firstSeconds,
    seconds: reply.seconds,
    best,
    error: reply.error?.message ?? null,
  };
}

/** Return the comparison that is shown with all that the server said. */
function whole() {
  const one = comparison();
  const answers = shown.columns.map(({ reply, first }, number) => ({
    ...one.answers[number],
    details: reply.result,
    first_pass: first?.result ?? null,
  }));
  return { ...one, answers };
}

function saveShown() {
  const { answers, ...question } = comparison();
  try {
    saved.save({ ...question, answers: answers.filter((one) => one.probability !== null) });
    toast("Comparison saved");
  } catch (error) {
    notice(error.message);
  }
  showSaved();
}

function showSaved() {
  const all = saved.comparisons();
  const listed = $("differ").checked ? all.filter(saved.differs) : all;
  $("saved-tools").hidden = !all.length;
  $("saved").hidden = !listed.length;
  $("saved").replaceChildren(saved.table(listed, addressOf, removeSaved));
  $("saved-empty").textContent = all.length
    ? `${listed.length} of ${all.length} shown`
    : "Mark the best answer, or several for a tie, and save the comparison: wins and losses are counted here.";
}

function removeSaved(id) {
  saved.remove(id);
  showSaved();
  $("saved-title").focus(); // the button is gone
}

function removeAllSaved() {
  if (!confirm("Remove all saved comparisons from this browser?")) return;
  saved.removeAll();
  showSaved();
  $("saved-title").focus();
}

// Documents

/** Upload files, or a text, to be asked. */
async function take(given, name, bytes) {
  forgetDocument();
  if (bytes > limits.max_document_bytes) {
    return showDocument(
      `${name} has ${megabytes(bytes)}, and the server takes ${megabytes(limits.max_document_bytes)}.`,
    );
  }
  const mine = (uploading = new AbortController());
  $("document-name").textContent = name;
  showDocument();
  let problem = "";
  try {
    const record = await upload(given, mine.signal);
    if (mine.signal.aborted) return removeUpload(record.id);
    uploaded = record;
  } catch (error) {
    if (mine.signal.aborted) return;
    problem = error.message;
  }
  uploading = null;
  showDocument(problem);
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function showDocument(problem = "") {
  $("document-choose").hidden = Boolean(uploading || uploaded);
  $("document-chosen").hidden = !(uploading || uploaded);
  $("document-size").textContent = uploaded ? contents(uploaded) : "being read…";
  $("go").disabled = Boolean(uploading);
  $("document-error").hidden = !problem;
  $("document-error").textContent = problem;
  if (uploaded) announce(`${uploaded.name}: ${contents(uploaded)}`);
}

function contents({ passages, skipped }) {
  const left = skipped.map(({ place, reason }) => `; left out ${place}: ${reason}`).join("");
  return `${passages} ${passages === 1 ? "passage" : "passages"}${left}`;
}

function forgetDocument() {
  uploading?.abort();
  if (uploaded) removeUpload(uploaded.id);
  uploading = uploaded = null;
}

const takeFiles = (files) => {
  const list = [...files];
  if (list.length)
    take(
      list,
      list.map((file) => file.name).join(", "),
      list.reduce((sum, file) => sum + file.size, 0),
    );
};

// Dialogs

function openKey() {
  $("key-value").value = storedKey();
  openDialog($("key"));
}

function closeKey() {
  if ($("key").returnValue === "use") storeKey($("key-value").value.trim());
  else if ($("key").returnValue === "forget") storeKey("");
  else return;
  load();
}

function closePaste() {
  const words = $("paste-value").value;
  if ($("paste").returnValue === "use" && words.trim()) take(words, "pasted text", new Blob([words]).size);
}

function openDialog(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
}

function showTheme() {
  const theme = localStorage.getItem(THEME) ?? "";
  $("theme").value = theme;
  document.documentElement.dataset.theme = theme;
}

function changeTheme() {
  localStorage.setItem(THEME, $("theme").value);
  showTheme();
}

// What the person does

const on = (id, event, act) => $(id).addEventListener(event, act);

on("ask", "submit", (event) => {
  event.preventDefault();
  ask();
});
on("stop", "click", stop);
on("find", "input", filterModels);
on("seed-new", "click", () => ($("seed").value = Math.floor(Math.random() * SEEDS)));
on("document-file", "click", () => $("file").click());
on("document-paste", "click", () => openDialog($("paste")));
on("document-remove", "click", () => {
  forgetDocument();
  showDocument();
  $("document-file").focus();
});
on("file", "change", () => {
  takeFiles($("file").files);
  $("file").value = ""; // so that the same file can be chosen again
});
on("paste", "close", closePaste);
on("key-open", "click", openKey);
on("key", "close", closeKey);
on("theme", "change", changeTheme);
on("save", "click", saveShown);
on("link", "click", () => copy(new URL(addressOf(comparison()), location.href).href, "Link"));
on("export", "click", () => download(whole(), "comparison.json"));
on("differ", "change", showSaved);
on("saved-export", "click", () => download(saved.comparisons(), "comparisons.json"));
on("saved-clear", "click", removeAllSaved);
on("skip", "click", (event) => {
  event.preventDefault(); // the address holds the question
  $("answers").focus();
});

addEventListener("hashchange", () => {
  applyAddress();
  $("question").focus();
});
addEventListener("storage", showSaved);
addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
});
addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  takeFiles(event.dataTransfer.files);
});
setInterval(() => running && shown.columns.forEach((column) => column.tick()), 100);

showTheme();
showSaved();
load();
