// The filter: rows of column, operator and value, the same condition as a line, and check boxes of values (facets).

import { byId, isolated, make, number } from "./text.js";
import { request } from "./api.js";

const FIELDS = { name: "text", path: "text", duration: "seconds", modified: "time", size: "megabytes", start: "seconds", end: "seconds" };
const LABELS = { duration: "duration (s)", size: "size (MB)", start: "start (s)", end: "end (s)" };
const MEGABYTE = 1e6;

// Operators by type of the column: label -> how a condition is written. `value`: type of the input, none without one.
const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
const pattern = (text) => text.replace(/[\\%_]/g, "\\$&");
const EMPTY = { "is empty": { write: (field) => `${field} is null` }, "has a value": { write: (field) => `${field} is not null` } };
const comparisons = (signs, literal) => Object.fromEntries(
  Object.entries(signs).map(([label, sign]) => [label, { sign, write: (field, value) => `${field} ${sign} ${literal(value)}` }]),
);
const NUMBERS = { "at least": ">=", "at most": "<=", "is": "=", "is not": "!=", "more than": ">", "less than": "<" };
const OPERATORS = {
  text: {
    contains: { write: (field, value) => `${field} like ${quoted(`%${pattern(value)}%`)}` },
    "does not contain": { write: (field, value) => `${field} not like ${quoted(`%${pattern(value)}%`)}` },
    "starts with": { write: (field, value) => `${field} like ${quoted(`${pattern(value)}%`)}` },
    ...comparisons({ is: "=", "is not": "!=" }, quoted),
    ...EMPTY,
  },
  texts: {
    has: { write: (field, value) => `${field} has ${quoted(value)}` },
    "does not have": { write: (field, value) => `${field} not has ${quoted(value)}` },
    ...EMPTY,
  },
  number: { ...comparisons(NUMBERS, String), ...EMPTY },
  megabytes: { ...comparisons(NUMBERS, (value) => String(Math.round(value * MEGABYTE))), ...EMPTY },
  time: { ...comparisons({ "on or after": ">=", before: "<" }, quoted), ...EMPTY },
  bool: {
    "is true": { write: (field) => `${field} = true` },
    "is false": { write: (field) => `${field} = false` },
    ...EMPTY,
  },
};
OPERATORS.seconds = OPERATORS.number;
const TYPES = { text: "text", texts: "texts", integer: "number", float: "number", bool: "bool", time: "time" };

let columns = {}; // name -> type of OPERATORS
let changed = () => {}; // called when the filter is another one

export function startFilter(about, onChange) {
  columns = { ...FIELDS, ...Object.fromEntries(Object.entries(about.columns ?? {}).map(([name, type]) => [name, TYPES[type]])) };
  if (about.is_public) delete columns.path;
  changed = onChange;
  byId("add-row").disabled = false; // no row can be made before the columns are known
  byId("fields").replaceChildren(...Object.keys(columns).flatMap((name) => [make("code", {}, name), " "]));
}

// --- rows

function makeRow({ column = "name", operator = null, value = "" } = {}) {
  const row = byId("filter-row").content.firstElementChild.cloneNode(true);
  const [columnBox, operatorBox] = row.querySelectorAll("select");
  const input = row.querySelector(".value");
  columnBox.append(...Object.keys(columns).map((name) => make("option", { value: name }, LABELS[name] ?? name)));
  columnBox.value = column;
  const showOperators = (chosen) => {
    const operators = OPERATORS[columns[columnBox.value]];
    operatorBox.replaceChildren(...Object.keys(operators).map((label) => make("option", { value: label }, label)));
    operatorBox.value = chosen in operators ? chosen : Object.keys(operators)[0];
    const type = columns[columnBox.value];
    input.type = type === "time" ? "date" : ["number", "seconds", "megabytes"].includes(type) ? "number" : "text";
    input.step = "any";
    input.hidden = operators[operatorBox.value].write.length < 2;
  };
  showOperators(operator);
  input.value = value;
  columnBox.addEventListener("change", () => { input.value = ""; showOperators(null); rowsChanged(); });
  operatorBox.addEventListener("change", () => { showOperators(operatorBox.value); rowsChanged(); });
  input.addEventListener("change", rowsChanged);
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") rowsChanged(); });
  row.querySelector(".remove").addEventListener("click", () => {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    (next?.querySelector(".remove") ?? byId("add-row")).focus();
    rowsChanged();
  });
  return row;
}

function conditionOf(row) {
  const [columnBox, operatorBox] = row.querySelectorAll("select");
  const { write } = OPERATORS[columns[columnBox.value]][operatorBox.value];
  const value = row.querySelector(".value").value.trim();
  if (write.length < 2) return write(columnBox.value);
  return value === "" ? null : write(columnBox.value, value);
}

function rowsChanged() {
  const line = [...byId("filter-rows").children].map(conditionOf).filter(Boolean).join(" and ");
  if (line === byId("where").value) return;
  byId("where").value = line;
  changed();
}

byId("add-row").addEventListener("click", () => {
  const row = makeRow();
  byId("filter-rows").append(row);
  row.querySelector("select").focus();
});

// --- the line

export function enteredWhere() { return byId("where").value.trim(); }

export function showWhere(line) {
  byId("where").value = line;
  const rows = line ? parseLine(line) : [];
  byId("filter-note").hidden = rows !== null;
  byId("add-row").hidden = rows === null;
  byId("filter-rows").replaceChildren(...(rows ?? []).map(makeRow));
  byId("as-line").open ||= rows === null;
}

function applyLine() {
  showWhere(enteredWhere());
  changed();
}

byId("apply-line").addEventListener("click", applyLine);
byId("where").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  applyLine();
});

const TOKEN = /\s*(?:('(?:[^']|'')*')|([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w))|(\w+)|(!=|<>|<=|>=|[=<>]))/y;

// The rows that a line stands for; null if it says what rows cannot.
export function parseLine(line) {
  const tokens = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < line.trimEnd().length) {
    const match = TOKEN.exec(line);
    if (!match) return null;
    const [, text, amount, word, sign] = match;
    if (text) tokens.push({ value: text.slice(1, -1).replaceAll("''", "'") });
    else if (amount) tokens.push({ value: amount });
    else tokens.push({ word: word?.toLowerCase() ?? sign.replace("<>", "!=") });
  }
  const rows = [];
  while (tokens.length) {
    if (rows.length && tokens.shift().word !== "and") return null;
    const end = tokens.findIndex(({ word }) => word === "and");
    const row = parseRow(tokens.splice(0, end < 0 ? tokens.length : end));
    if (!row) return null;
    rows.push(row);
  }
  return rows;
}

function parseRow([first, ...rest]) {
  const column = first?.word;
  const type = columns[column];
  if (!type || !rest.length) return null;
  const words = rest.map(({ word }) => word ?? "").join(" ").trim();
  const value = rest.at(-1).value ?? "";
  const known = {
    "is null": "is empty", "is not null": "has a value", has: "has", "not has": "does not have", "= true": "is true", "= false": "is false",
  }[words];
  let row = known && { column, operator: known, value };
  if (/^(not )?like$/.test(words)) {
    const inner = value.match(/^%((?:[^%_\\]|\\[%_\\])+)%$/);
    const begins = value.match(/^((?:[^%_\\]|\\[%_\\])+)%$/);
    const plain = (text) => text.replace(/\\([%_\\])/g, "$1");
    if (inner) row = { column, operator: words === "like" ? "contains" : "does not contain", value: plain(inner[1]) };
    else if (begins && words === "like") row = { column, operator: "starts with", value: plain(begins[1]) };
  } else if (!known && rest.length === 2) {
    const operator = Object.entries(OPERATORS[type]).find(([, { sign }]) => sign === words)?.[0];
    if (operator) row = { column, operator, value: type === "megabytes" ? String(value / MEGABYTE) : value };
  }
  if (!row || !(row.operator in OPERATORS[type])) return null;
  if (type === "time" && row.value && !/^\d{4}-\d\d-\d\d$/.test(row.value)) return null; // a date box holds no time of day
  return row;
}

// --- facets: values of the owner's columns, as check boxes

let shownFacets = ""; // response of the server

export function chosenFacets() { return [...byId("facets").querySelectorAll(":checked")].map(({ value }) => value); }

export function chooseFacets(chosen) {
  for (const box of byId("facets").querySelectorAll("input")) box.checked = chosen.includes(box.value);
}

export async function loadFacets(chosen = null) {
  let facets;
  try {
    ({ facets } = await request("facets"));
  } catch {
    return; // the list of videos says what is wrong
  }
  if (shownFacets === JSON.stringify(facets)) return;
  shownFacets = JSON.stringify(facets);
  const checked = new Set(chosen ?? chosenFacets());
  const focused = document.activeElement?.name === "facet" ? document.activeElement.value : null;
  byId("facets").replaceChildren(...facets.map(({ column, values }) => make(
    "fieldset",
    { class: "facet" },
    make("legend", {}, isolated(column)),
    ...values.map(({ id, label, count }) => {
      const box = make("input", { type: "checkbox", name: "facet", value: id });
      box.checked = checked.has(id);
      const text = isolated(label, "value");
      text.title = label;
      return make("label", {}, box, text, make("span", { class: "quiet" }, number(count.toLocaleString("en"))));
    }),
  )));
  if (focused) byId("facets").querySelector(`[value="${CSS.escape(focused)}"]`)?.focus();
}

byId("facets").addEventListener("change", () => changed());
