// Texts of the page: numbers, times and names, each isolated, so that a name that is written from right to left does
// not turn a number beside it around.

export const byId = (id) => document.getElementById(id);

// A new element with attributes, properties of `dataset` and children; strings become text, never HTML.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// Text of a user: its own writing direction, isolated from its surroundings.
export function isolated(text, className = "") {
  return make("bdi", { dir: "auto", class: className || null }, text);
}

// Numbers and times: from left to right wherever they are.
export function number(text) { return make("bdi", { dir: "ltr", class: "number" }, text); }

export function icon(name) {
  const svg = byId("icon").content.firstElementChild.cloneNode(true);
  svg.firstElementChild.setAttribute("href", `#icon-${name}`);
  return svg;
}

export function count(amount, noun) { return `${amount.toLocaleString("en")} ${noun}${amount === 1 ? "" : "s"}`; }

export function clock(seconds) {
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${parts.join(":")}` : `${Number(parts[0])}:${parts[1]}`;
}

// A time with tenths, where moments of a second differ.
export function preciseClock(seconds) {
  const tenths = Math.round(seconds * 10);
  return tenths % 10 ? `${clock(Math.floor(tenths / 10))}.${tenths % 10}` : clock(tenths / 10);
}

export function span({ start, end }) { return `${clock(start)}–${end === null ? "" : clock(end)}`; }

export function bytes(size) {
  const [divisor, unit] = size >= 1e9 ? [1e9, "GB"] : size >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(size / divisor).toLocaleString("en", { maximumFractionDigits: 1 })} ${unit}`;
}

const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const MONTH = new Intl.DateTimeFormat("en-GB", { month: "long", year: "numeric" });
export const day = (time) => DAY.format(new Date(time));
export const month = (time) => (time ? MONTH.format(new Date(time)) : "Without a date");

// Rows of the owner's columns that have a value; a long text opens at its first words, or is only its first words.
const MAX_SHOWN = 100; // characters

export function columnRows(columns, opens = true) {
  return Object.entries(columns).filter(([, value]) => value !== null).map(([name, value]) => {
    const texts = [value].flat().map((text) => shownText(text, Array.isArray(value) ? "item" : "", opens));
    // A text by itself gives its direction to the whole row, so that a row that is cut shows its first words.
    const isAlone = !opens && !Array.isArray(value);
    const description = isAlone ? make("dd", { dir: "auto" }, texts[0].textContent) : make("dd", {}, ...texts);
    return make("div", {}, make("dt", {}, isolated(name)), description);
  });
}

function shownText(text, className, opens) {
  if (text.length <= MAX_SHOWN) return isolated(text, className);
  const start = isolated(`${text.slice(0, MAX_SHOWN).replace(/[\ud800-\udbff]$/, "")}…`, className);
  return opens ? make("details", {}, make("summary", {}, start), isolated(text)) : start;
}

let toastEnds = 0;

// Say for three seconds that something was done.
export function toast(text) {
  byId("toast").textContent = text;
  clearTimeout(toastEnds);
  toastEnds = setTimeout(() => { byId("toast").textContent = ""; }, 3000);
}

// Copy a text; a page that is not on https or this machine has no clipboard, but can copy a selection.
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied`);
  } catch {
    const area = make("textarea", { class: "hidden-label", "aria-hidden": "true" });
    area.value = text;
    const focused = document.activeElement;
    (focused.closest("dialog") ?? document.body).append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    focused.focus();
    toast(isCopied ? `${what} copied` : `This browser does not copy. ${what}: ${text}`);
  }
}
