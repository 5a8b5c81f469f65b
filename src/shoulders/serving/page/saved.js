// Saved comparisons: kept in this browser, and shown as a table of wins and losses.

import { element, percent } from "./column.js";

const KEY = "shoulders.comparisons"; // of the local storage
const MOST = 200;

/** Return the saved comparisons, newest first. What cannot be read is put aside, not thrown away. */
export function comparisons() {
  const kept = localStorage.getItem(KEY);
  try {
    const list = JSON.parse(kept ?? "[]");
    if (!Array.isArray(list)) throw new TypeError("no list");
    return list;
  } catch {
    localStorage.setItem(`${KEY}.unreadable`, kept);
    localStorage.removeItem(KEY);
    return [];
  }
}

function store(list) {
  try {
    localStorage.setItem(KEY, JSON.stringify(list));
  } catch {
    throw new Error("This browser keeps no more: export the saved comparisons and remove some.");
  }
}

/** Save a comparison, in the place of the one with its id if there is one. */
export function save(comparison) {
  const list = comparisons();
  const others = list.filter((one) => one.id !== comparison.id);
  if (others.length >= MOST)
    throw new Error(`${MOST} comparisons are saved, and no more are kept: export them and remove some.`);
  store([comparison, ...others]);
}

export const remove = (id) => store(comparisons().filter((one) => one.id !== id));

export const removeAll = () => localStorage.removeItem(KEY);

const plain = (answer) => answer?.trim().toLowerCase();

/** Return whether the models did not all answer the same. */
export const differs = ({ answers }) => new Set(answers.map((one) => plain(one.answer))).size > 1;

/** Return what became of a model in a comparison: "won", "tied", "lost", or "" if nobody was marked. */
export function outcome({ answers }, answer) {
  const best = answers.filter((one) => one.best).length;
  if (!best) return "";
  if (best === answers.length) return "tied";
  return answer.best ? "won" : "lost";
}

/** Return the table of some comparisons, a column for each model. `onRemove` is called with an id. */
export function table(list, address, onRemove) {
  const models = [...new Set(list.flatMap(({ answers }) => answers.map((one) => one.model)))];
  const heads = ["Question", ...models].map((name) => element("th", { scope: "col", textContent: name }));
  const last = element("th", { scope: "col" }, element("span", { className: "hidden", textContent: "Remove" }));
  const head = element("thead", {}, element("tr", {}, ...heads, last), totals(list, models));
  const rows = list.map((one) => row(one, models, address(one), onRemove));
  return element("table", {}, head, element("tbody", {}, ...rows));
}

function totals(list, models) {
  const cells = models.map((model) => {
    const outcomes = list.map((one) => {
      const answer = one.answers.find((other) => other.model === model);
      return answer && outcome(one, answer);
    });
    const count = (name) => outcomes.filter((one) => one === name).length;
    return element("td", { textContent: `${count("won")} won, ${count("tied")} tied, ${count("lost")} lost` });
  });
  return element(
    "tr",
    { className: "totals" },
    element("th", { scope: "row", textContent: "Of those shown" }),
    ...cells,
    element("td"),
  );
}

function row(comparison, models, address, onRemove) {
  const { id, question, document: read, saved } = comparison;
  const when = [new Date(saved).toLocaleDateString("en", { dateStyle: "medium" }), read]
    .filter((one) => one)
    .join(", ");
  const asked = element(
    "th",
    { scope: "row" },
    element("a", { href: address, textContent: question, dir: "auto" }),
    element("span", { className: "muted", textContent: when }),
  );
  const cells = models.map((model) => {
    const answer = comparison.answers.find((one) => one.model === model);
    return answer
      ? cell(answer, outcome(comparison, answer))
      : element("td", { className: "muted", textContent: "not asked" });
  });
  const button = element("button", {
    type: "button",
    className: "quiet",
    textContent: "Remove",
    ariaLabel: `Remove: ${question}`,
  });
  button.addEventListener("click", () => onRemove(id));
  return element("tr", {}, asked, ...cells, element("td", {}, button));
}

function cell({ answer, probability }, became) {
  const said = element("span", {
    className: answer === null ? "none clamped" : "clamped",
    textContent: answer ?? "No answer",
    dir: "auto",
  });
  const mark = became ? element("span", { className: `outcome ${became}`, textContent: became }) : null;
  const sure = element("span", { className: "muted number", textContent: percent(probability) });
  return element("td", {}, said, element("span", { className: "below" }, mark, sure));
}
