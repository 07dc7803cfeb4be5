// The page: what is shown (the library, the results of a query, videos like another one) and its address.

import { RequestError, request } from "./api.js";
import { dropPictures, makeCard, rove, watchKeys } from "./cards.js";
import { chooseFacets, chosenFacets, enteredWhere, loadFacets, showWhere, startFilter } from "./filter.js";
import { closePlayer, openPlayer, playFrom } from "./player.js";
import { byId, isolated, make, month, number } from "./text.js";
import { cancelUpload, startUpload } from "./upload.js";
import { explain, fillCaptions } from "./why.js";

const PAGE_SIZE = 24;
const MAX_LIKE_UPLOAD = 96; // results for a file that is sent: a further page would need the file again

let about = null;
let view = {}; // {text, like, where, facets}: what the address says; `upload` is the name of a file, not in the address
let page = {}; // {next_offset, shown, total} of the last answer
let videos = []; // the shown videos, for the player
let loading = null; // AbortController of the current request

// --- address

function viewOf(search) {
  const parameters = new URLSearchParams(search);
  const [text, like, where] = ["text", "like", "where"].map((name) => parameters.get(name)?.trim() ?? "");
  return { text, like: text ? "" : like, where, facets: parameters.getAll("facet") };
}

function addressOf({ text, like, where, facets }, open = null) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries({ text, like, where })) if (value) parameters.set(name, value);
  for (const facet of facets) parameters.append("facet", facet);
  if (open) parameters.set("open", open);
  return parameters.size ? `?${parameters}` : location.pathname;
}

function enteredView(change = {}) {
  return { text: byId("text").value.trim(), like: "", where: enteredWhere(), facets: chosenFacets(), ...change };
}

// Show another view, and keep it in the history of the browser.
function navigate(next) {
  keepPosition();
  history.pushState({}, "", addressOf(next));
  scrollTo(0, 0);
  return load(next);
}

// What "back" needs to show the page as it was left.
function keepPosition() { history.replaceState({ y: scrollY, shown: page.shown }, ""); }

history.scrollRestoration = "manual";
addEventListener("popstate", async ({ state }) => {
  const next = viewOf(location.search);
  const isSame = !view.upload && addressOf(next) === addressOf(view);
  fillControls(next);
  if (!isSame) await load(next, state?.shown);
  scrollTo(0, state?.y ?? scrollY);
  const open = new URLSearchParams(location.search).get("open");
  if (open) openById(open);
  else if (byId("player").open) closePlayer();
});
addEventListener("beforeunload", keepPosition);

function fillControls(next) {
  byId("text").value = next.text;
  showWhere(next.where);
  chooseFacets(next.facets);
}

// --- loading

function parametersOf(next, k, offset) {
  const query = next.text ? { text: next.text } : next.like ? { like: next.like } : {};
  const common = { where: next.where, facet: next.facets, k, offset };
  const judge = query.text ? { judge: offset === 0 } : {}; // once per search, not per page
  return query.text || query.like ? { ...query, ...common, ...judge, group: true } : { ...common, order: "newest" };
}

const pathOf = ({ text, like }) => (text || like ? "search" : "videos");

async function load(next, shown = PAGE_SIZE) {
  cancelUpload();
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  view = next;
  showHeading();
  byId("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => setStatus(next.text || next.like ? "Searching …" : "Loading …"), 200);
  try {
    const k = Math.min(Math.max(shown, PAGE_SIZE), about.max_results);
    const answer = await request(pathOf(next), parametersOf(next, k, 0), { signal });
    clearTimeout(slow);
    clear();
    show(answer);
  } catch (error) {
    clearTimeout(slow);
    if (error.name === "AbortError") return;
    clear();
    showError(error);
  } finally {
    if (!signal.aborted) byId("results").removeAttribute("aria-busy");
  }
  loadFacets(); // the index may have changed
}

async function loadMore() {
  byId("more").disabled = true;
  try {
    const first = videos.length;
    show(await request(pathOf(view), parametersOf(view, PAGE_SIZE, page.next_offset)));
    byId("results").querySelectorAll(".open")[first]?.focus();
  } catch (error) {
    showError(error);
  }
  byId("more").disabled = false;
}

byId("more").addEventListener("click", loadMore);

function clear() {
  dropPictures();
  videos = [];
  page = { shown: 0 };
  byId("error").textContent = "";
  byId("results").replaceChildren();
  byId("captions").replaceChildren();
  for (const part of ["captions", "more", "note", "state"]) byId(part).hidden = true;
  setStatus("");
}

function setStatus(...parts) { byId("status").replaceChildren(...parts); }

function showError(error) {
  setStatus("");
  if (error.status === 401 || error.status === 0) {
    const [title, label] = error.status ? ["Token missing", "Enter the token"] : ["No connection", "Try again"];
    return showState(title, error.message, startButton(label));
  }
  byId("error").textContent = error.message;
}

function startButton(label) {
  const button = make("button", { type: "button", class: "primary" }, label);
  button.addEventListener("click", start);
  return button;
}

// --- what is shown

function showHeading() {
  const heading = byId("results-heading");
  const { text, like, upload } = view;
  if (text) heading.replaceChildren("Results for “", isolated(text), "”");
  else if (like) heading.replaceChildren("More like this");
  else if (upload) heading.replaceChildren("Results like ", isolated(upload));
  else heading.replaceChildren(view.where || view.facets.length ? "Library, filtered" : "Library");
  const numFilters = view.facets.length + (view.where ? 1 : 0);
  byId("num-filters").hidden = byId("clear-filters").hidden = !numFilters;
  byId("num-filters").textContent = numFilters;
  byId("examples").hidden = Boolean(text || like || upload || numFilters);
  document.title = text ? `${text} – Search videos` : "Search videos";
}

function show(answer) {
  const found = answer.results ?? answer.videos;
  const isLibrary = !answer.results;
  for (const video of found) {
    videos.push(video);
    listFor(isLibrary ? month(video.modified) : "").append(makeCard(video, actions()));
  }
  for (const card of byId("results").querySelectorAll(".card")) rove(card, card.querySelector(".open"));
  page = { next_offset: answer.next_offset, shown: videos.length };
  byId("more").hidden = answer.next_offset === null || answer.next_offset === undefined;
  if (!answer.offset) {
    byId("note").hidden = !answer.note;
    byId("note").querySelector("span").textContent = answer.note ?? "";
  }
  if (!videos.length) return showNothing();
  const total = isLibrary ? answer.total : videos.length;
  setStatus(number(total.toLocaleString("en")), ` video${total === 1 ? "" : "s"}${byId("more").hidden || isLibrary ? "" : ", more below"}`);
  if (view.like) nameLiked();
}

// The list of cards under a heading; results of a search have none.
function listFor(title) {
  const last = byId("results").lastElementChild;
  if (last && last.dataset.title === title) return last.querySelector("ol");
  const list = make("ol", { class: "gallery" });
  const section = make("section", {}, ...(title ? [make("h3", { class: "date" }, title)] : []), list);
  section.dataset.title = title;
  byId("results").append(section);
  return list;
}

async function nameLiked() {
  const { like } = view;
  try {
    const { name } = await request(`videos/${like}`);
    if (view.like === like) byId("results-heading").replaceChildren("More like ", isolated(name));
  } catch { /* the heading says less */ }
}

function showNothing() {
  const isFiltered = view.where || view.facets.length;
  const button = make("button", { type: "button", class: "primary" }, "Clear all filters");
  button.addEventListener("click", clearFilters);
  if (isFiltered) showState("Nothing found", "No video meets the filter.", button);
  else if (view.text || view.like || view.upload) showState("Nothing found", "The index holds no other video.");
  else showState("The index is empty", "Add videos to it:", make("code", {}, "pig index FOLDER --index INDEX"));
}

function showState(title, message, ...more) {
  const state = byId("state");
  state.hidden = false;
  state.replaceChildren(make("h3", {}, title), make("p", {}, message), ...more);
}

// --- actions of a video

function actions() {
  return {
    open: (video) => {
      keepPosition();
      history.pushState({}, "", addressOf(view, video.id));
      isPlayerInHistory = true;
      openPlayer(video, videos, actions(), playerChanged);
    },
    like: (video) => {
      leavePlayer();
      byId("text").value = "";
      navigate({ ...enteredView(), text: "", like: video.id });
      byId("results-heading").focus();
    },
    why: view.text && about.explains ? (video) => explain(video, view.text, about, playAt) : null,
  };
}

function playAt(video, seconds) {
  if (!byId("player").open) actions().open(video);
  byId("video").addEventListener("loadedmetadata", () => playFrom(seconds), { once: true });
  if (byId("video").readyState) playFrom(seconds);
}

let isPlayerInHistory = false; // whether "back" closes the player

// The address names the video that plays; when the player is closed, it is the address before.
function playerChanged(video) {
  const isOpen = new URLSearchParams(location.search).has("open");
  if (video || (isOpen && !isPlayerInHistory)) history.replaceState(history.state, "", addressOf(view, video?.id));
  else if (isOpen) history.back();
  if (!video) isPlayerInHistory = false;
}

function leavePlayer() {
  isPlayerInHistory = false;
  if (byId("player").open) closePlayer();
}

async function openById(id) {
  const known = videos.find((video) => video.id === id);
  try {
    const video = known ?? await request(`videos/${id}`);
    if (!known) video.wanted = id;
    openPlayer(video, videos, actions(), playerChanged);
  } catch (error) {
    showError(error.status === 404 ? new RequestError("The video of this link is no longer in the index.", 404) : error);
  }
}

// --- controls

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  if (isReady) navigate(enteredView());
  else isAwaited = true;
});
byId("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || !about) return;
  event.preventDefault();
  const next = viewOf("");
  fillControls(next);
  navigate(next);
});

// A filter narrows what is shown, not what is in the text box by now.
function filterChanged() {
  if (view.upload) navigate(enteredView());
  else navigate(enteredView({ text: view.text, like: view.like }));
}

function clearFilters() {
  showWhere("");
  chooseFacets([]);
  filterChanged();
  byId("results-heading").focus();
}

byId("clear-filters").addEventListener("click", clearFilters);
for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const dialog of document.querySelectorAll("dialog")) { // a click beside a dialog closes it
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
watchKeys(byId("results"));

const wide = matchMedia("(min-width: 64rem)");
const openFilters = () => { byId("narrow").open = wide.matches; };
wide.addEventListener("change", openFilters);

function showUploaded(name, fill) {
  loading?.abort();
  byId("results").removeAttribute("aria-busy"); // an aborted search has set it
  keepPosition();
  history.pushState({}, "", location.pathname);
  byId("text").value = "";
  view = { ...enteredView(), text: "", upload: name };
  clear();
  showHeading();
  fill();
  byId("results-heading").focus();
}

function showExamples() {
  byId("examples").replaceChildren(...about.examples.map((example) => {
    const button = make("button", { type: "button" }, isolated(example));
    button.addEventListener("click", () => {
      byId("text").value = example;
      navigate(enteredView());
    });
    return button;
  }));
}

// --- start

let isStarted = false; // whether the controls are connected
let isReady = false; // whether what was typed can be searched
let isAwaited = false; // whether a visitor has asked for a search before

async function start() {
  clear();
  try {
    about = await request("about");
  } catch (error) {
    return showError(error);
  }
  const entries = [number(about.clips.toLocaleString("en")), about.clips === 1 ? " entry" : " entries", ", ranked by ", isolated(about.model)];
  byId("about").replaceChildren(...(about.model ? entries : []));
  startFilter(about, filterChanged);
  showExamples();
  if (!isStarted) {
    isStarted = true;
    startUpload(
      about,
      () => ({ where: enteredWhere(), facet: chosenFacets(), k: MAX_LIKE_UPLOAD, group: true }),
      (answer, name) => showUploaded(name, () => show({ ...answer, next_offset: null })),
      (captions, name) => showUploaded(name, () => {
        byId("results-heading").replaceChildren("Captions for ", isolated(name));
        byId("captions").hidden = false;
        fillCaptions(byId("captions"), captions);
      }),
    );
  }
  if (about.state && about.state !== "ready") {
    const titles = { no_index: "There is no index yet", other_model: "The index is of another model" };
    byId("examples").hidden = true;
    return showState(titles[about.state] ?? "The index cannot be read", about.message, startButton("Try again"));
  }
  const first = viewOf(location.search);
  const typed = byId("text").value; // a visitor may have typed before the facts arrived: keep that
  fillControls(first);
  if (typed && !first.text) byId("text").value = typed;
  const facetsLoaded = loadFacets(first.facets);
  if (first.facets.length) await facetsLoaded;
  isReady = true;
  if (isAwaited) return navigate(enteredView());
  await load(first, history.state?.shown);
  scrollTo(0, history.state?.y ?? 0);
  const open = new URLSearchParams(location.search).get("open");
  if (open) openById(open);
}

openFilters();
start();
