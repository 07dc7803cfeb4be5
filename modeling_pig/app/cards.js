// Cards of videos: thumbnail, preview, facts and actions. A card is one tab stop; arrow keys move between its actions.

import { address, reasonOf } from "./api.js";
import { byId, bytes, clock, columnRows, copy, day, icon, make, number, span } from "./text.js";

const PREVIEW_AFTER = 250; // milliseconds: passing over cards loads nothing
const MAX_LOADING = 4; // pictures at a time; a browser has six connections, and a search needs one
const MAX_COLUMNS = 3; // of the owner's columns on a card; the player shows all
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

// --- pictures: loaded when they come near the view, some at a time, and no longer if their card has gone

const waiting = new Set();
const loading = new Set();
const watcher = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (isIntersecting) waiting.add(target);
    else waiting.delete(target);
  }
  loadPictures();
}, { rootMargin: "300px" });

function loadPictures() {
  for (const image of waiting) {
    if (loading.size >= MAX_LOADING) return;
    waiting.delete(image);
    watcher.unobserve(image);
    loading.add(image);
    image.src = image.dataset.source;
  }
}

function pictureEnded(image) {
  loading.delete(image);
  loadPictures();
}

export function dropPictures() {
  watcher.disconnect();
  waiting.clear();
  for (const image of loading) image.removeAttribute("src");
  loading.clear();
}

// --- a card

// `actions`: what the page does with a video: open, like, why (absent if the model does not explain).
export function makeCard(video, actions) {
  const card = byId("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => card.querySelector(selector);
  find(".open").textContent = find(".name").title = video.name;
  if (video.rank) find(".rank").textContent = video.rank;
  else find(".rank").remove();
  const length = video.start === null || video.start === undefined ? video.duration : null;
  if (length) find(".length").append(number(clock(length)));
  else find(".length").remove();
  find(".facts").append(...factsOf(video));
  find(".columns").append(...columnRows(video.columns, false).slice(0, MAX_COLUMNS));
  find(".actions").append(...actionsOf(video, actions));
  const open = () => actions.open(video);
  find(".open").addEventListener("click", open);
  find(".screen").addEventListener("click", open);
  showThumbnail(card, video);
  previewOn(card, video);
  return card;
}

// Facts in a row: each number by itself, so that text from right to left beside it cannot turn it around.
export function factsOf(video) {
  const facts = [];
  if (video.score !== undefined) facts.push(["score ", number(video.score.toFixed(3))]);
  if (video.start !== null && video.start !== undefined) facts.push([number(span(video))]);
  if (video.others?.length) facts.push([`${video.others.length + 1} moments`]);
  if (video.modified) facts.push([make("time", { datetime: video.modified }, number(day(video.modified)))]);
  if (video.score === undefined && video.size) facts.push([number(bytes(video.size))]);
  return facts.map((parts) => make("span", {}, ...parts));
}

// Buttons of a video, of which those that cannot be are left out.
export function actionsOf(video, { like, why }, isLabelled = false) {
  const button = (name, label, act) => {
    const element = make("button", { type: "button", class: `icon ${name}`, "aria-label": `${label}: ${video.name}`, title: label }, icon(name));
    if (isLabelled) element.append(label);
    element.addEventListener("click", act);
    return element;
  };
  const list = [button("like", "More like this", () => like(video))];
  if (why) list.push(button("why", "Why?", () => why(video)));
  const link = new URL(`?open=${video.id}`, location.href).href;
  if (video.path) list.push(button("copy", "Copy path", () => copy(video.path, "Path")));
  if (!video.path || isLabelled) list.push(button("copy", "Copy link", () => copy(link, "Link")));
  const isMoment = video.start !== null && video.start !== undefined;
  const label = isMoment ? "Download the moment" : "Download";
  const source = address("clip", { id: video.id, format: isMoment ? "mp4" : "original" });
  const stem = video.name.replace(/\.[^.]*$/, "");
  const file = isMoment ? `${stem} ${span(video).replaceAll(":", ".")}.mp4` : video.name;
  const attributes = { href: source, download: file, class: "icon download", "aria-label": `${label}: ${video.name}`, title: label };
  list.push(make("a", attributes, icon("download"), ...(isLabelled ? [label] : [])));
  return list;
}

function showThumbnail(card, video) {
  const image = card.querySelector("img");
  image.dataset.source = address("thumbnail", { id: video.id });
  image.addEventListener("load", () => {
    card.classList.add("loaded");
    pictureEnded(image);
  });
  image.addEventListener("error", async () => {
    if (!image.hasAttribute("src")) return; // dropped
    pictureEnded(image);
    image.hidden = true;
    const { title, message } = await reasonOf(image.dataset.source);
    const missing = card.querySelector(".missing");
    missing.hidden = false;
    missing.title = message;
    missing.append(make("strong", {}, title), make("span", {}, message));
  });
  watcher.observe(image);
}

// Frames of the video, one after the other, while the pointer or the focus is on a card.
function previewOn(card, video) {
  const preview = card.querySelector(".preview");
  let timer = 0;
  let frames = null; // picture of all frames side by side
  const show = () => {
    if (reducedMotion.matches || card.querySelector("img").hidden) return;
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (!frames) {
        frames = new Image();
        frames.src = address("thumbnail", { id: video.id, kind: "preview" });
      }
      try {
        await frames.decode();
      } catch {
        return; // the thumbnail stays
      }
      if (!card.matches(":hover, :focus-within")) return;
      const ratio = frames.naturalWidth / 8 / frames.naturalHeight;
      preview.style.backgroundImage = `url("${frames.src}")`;
      preview.style.aspectRatio = ratio;
      preview.classList.toggle("tall", ratio < 16 / 9);
      preview.hidden = false;
    }, PREVIEW_AFTER);
  };
  const hide = () => {
    clearTimeout(timer);
    preview.hidden = true;
  };
  card.addEventListener("pointerenter", ({ pointerType }) => { if (pointerType === "mouse") show(); });
  card.addEventListener("pointerleave", hide);
  card.addEventListener("focusin", ({ target }) => { if (target.matches(":focus-visible")) show(); });
  card.addEventListener("focusout", ({ relatedTarget }) => { if (!card.contains(relatedTarget)) hide(); });
}

// --- keys: Tab moves from card to card, arrow keys within a card and between cards

const STOPS = ".open, .actions > *";
const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

export function watchKeys(container) {
  container.addEventListener("focusin", ({ target }) => rove(target.closest(".card"), target));
  container.addEventListener("focusout", ({ target, relatedTarget }) => {
    const card = target.closest(".card");
    if (card && !card.contains(relatedTarget)) rove(card, card.querySelector(".open"));
  });
  container.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.altKey || event.metaKey) return;
    const stops = [...card.querySelectorAll(STOPS)];
    const now = stops.indexOf(event.target);
    if (now < 0) return;
    let next = null;
    if (event.key in STEPS) next = stops[now + STEPS[event.key]];
    else if (event.key === "Home") next = stops[0];
    else if (event.key === "End") next = stops.at(-1);
    else if (event.key === "ArrowDown") next = neighbour(container, card, 1);
    else if (event.key === "ArrowUp") next = neighbour(container, card, -1);
    else return;
    event.preventDefault();
    next?.focus();
  });
}

// One element of a card is in the order of Tab.
export function rove(card, chosen) {
  if (!card || !chosen.matches(STOPS)) return;
  for (const stop of card.querySelectorAll(STOPS)) stop.tabIndex = stop === chosen ? 0 : -1;
}

// The card in the row below or above, nearest in its column.
function neighbour(container, card, direction) {
  const cards = [...container.querySelectorAll(".card")];
  const { left, top } = card.getBoundingClientRect();
  const rows = cards.map((other) => ({ other, box: other.getBoundingClientRect() }))
    .filter(({ box }) => (direction > 0 ? box.top > top + 1 : box.top < top - 1));
  rows.sort((a, b) => direction * (a.box.top - b.box.top) || Math.abs(a.box.left - left) - Math.abs(b.box.left - left));
  return rows[0]?.other.querySelector(".open");
}
