// Behaviour of the page. Strings from the server are inserted as text, never as HTML.

const PAGE_SIZE = 12;
const MAX_SHOWN = 100; // characters of a column's value; more are shown on request
const byId = (id) => document.getElementById(id);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;

let about = { max_upload_bytes: 0 };
let shownQuery = null; // query of the shown results: {text, where, facets, k}; text is null for an uploaded video
let searching = null; // AbortController of the current search

// --- requests

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not respond: check that it is running.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `The server failed with status ${response.status}.`);
  return body;
}

function setStatus(text) { byId("status").textContent = text; }

function showError(message) {
  setStatus("");
  byId("error").textContent = message;
}

function clear() {
  byId("error").textContent = "";
  byId("results").replaceChildren();
  byId("results").removeAttribute("aria-busy"); // an aborted search has set it
  byId("captions").replaceChildren();
  byId("captions").hidden = byId("more").hidden = byId("pause").hidden = true;
}

// --- search by query

function enteredQuery() {
  return { text: byId("text").value.trim(), where: byId("where").value.trim(), facets: chosenFacets() };
}

function parametersOf({ where, facets }, others) {
  const parameters = new URLSearchParams(others);
  if (where) parameters.set("where", where);
  for (const facet of facets) parameters.append("facet", facet);
  return parameters;
}

async function search(query, k = PAGE_SIZE) {
  const { text } = query;
  upload?.abort();
  searching?.abort();
  searching = new AbortController();
  const { signal } = searching;
  if (!text) {
    clear();
    showError("Write what to search for.");
    byId("text").focus();
    return;
  }
  const isMore = k > PAGE_SIZE;
  if (!isMore) clear();
  byId("error").textContent = "";
  setStatus("Searching …");
  byId("results").setAttribute("aria-busy", "true");
  try {
    const started = performance.now();
    const { results } = await request(`api/v1/search?${parametersOf(query, { text, k, group: true })}`, { signal });
    shownQuery = { ...query, k };
    history.replaceState(null, "", `?${parametersOf(query, { text })}`);
    show(results, isMore);
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    setStatus(results.length ? `${count(results.length, "result")} for “${text}” in ${seconds} s` : `No results for “${text}”.`);
    byId("more").hidden = results.length < k || k >= about.max_results;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!isMore) clear();
    showError(error.message);
  } finally {
    if (!signal.aborted) {
      byId("results").removeAttribute("aria-busy");
      loadFacets(); // the index may have changed
    }
  }
}

// --- facets: values of the owner's columns, as check boxes

let facetsShown = ""; // response of the server

function chosenFacets() { return [...byId("facet-list").querySelectorAll(":checked")].map(({ value }) => value); }

async function loadFacets(chosen = null) {
  let facets;
  try {
    ({ facets } = await request("api/v1/facets"));
  } catch {
    return; // a search says what is wrong
  }
  if (facetsShown === JSON.stringify(facets)) return;
  facetsShown = JSON.stringify(facets);
  const checked = new Set(chosen ?? chosenFacets());
  const focused = document.activeElement?.name === "facet" ? document.activeElement.value : null;
  byId("facet-list").replaceChildren(...facets.map(({ column, values }) => {
    const group = document.createElement("fieldset");
    group.className = "facet";
    const legend = document.createElement("legend");
    legend.textContent = column;
    group.append(legend, ...values.map(({ id, label, count }) => {
      const item = document.createElement("label");
      const box = document.createElement("input");
      Object.assign(box, { type: "checkbox", name: "facet", value: id, checked: checked.has(id) });
      const text = document.createElement("bdi");
      text.textContent = text.title = label;
      const number = document.createElement("span");
      number.className = "quiet";
      number.textContent = count.toLocaleString("en");
      item.append(box, text, number);
      return item;
    }));
    return group;
  }));
  byId("facets").hidden = !facets.length;
  if (focused) byId("facet-list").querySelector(`[value="${CSS.escape(focused)}"]`)?.focus();
}

byId("facet-list").addEventListener("change", () => { if (shownQuery?.text) search({ ...enteredQuery(), text: shownQuery.text }); });

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

function clock(seconds) {
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${parts.join(":")}` : `${Number(parts[0])}:${parts[1]}`;
}

// --- the gallery

function show(results, isMore = false) {
  const list = byId("results");
  const shown = isMore ? list.children.length : 0;
  for (const result of results.slice(shown)) list.append(card(result));
  byId("pause").hidden = !results.length;
  if (isMore) list.children[shown]?.querySelector("video").focus();
}

function card(file) {
  const item = byId("card").content.firstElementChild.cloneNode(true);
  const video = item.querySelector("video");
  item.querySelector(".rank").textContent = file.rank;
  item.querySelector(".name").textContent = file.name;
  video.muted = true; // the attribute of a template's clone does not mute
  let segment = file; // shown segment of the file, or the whole file

  function showSegment(selected) {
    segment = selected;
    const facts = [`score ${segment.score.toFixed(3)}`];
    if (segment.start !== null) facts.unshift(span(segment));
    else if (segment.duration !== null) facts.unshift(clock(segment.duration));
    item.querySelector(".facts").textContent = facts.join(" · ");
    const time = segment.start === null ? "" : `, ${span(segment)}`;
    video.setAttribute("aria-label", `Result ${file.rank}: ${file.name}${time}`);
    video.hidden = false;
    item.querySelector(".unplayable").hidden = true;
    video.loop = segment.start === null; // `loop` restarts at the start of the file
    video.src = `api/v1/clip?id=${segment.id}${segment.start === null ? "" : `#t=${segment.start},${segment.end}`}`;
    if (inView.has(video) && !isPaused()) play(video);
  }
  const rewind = () => {
    if (segment.start === null || video.seeking) return;
    video.currentTime = segment.start;
    if (inView.has(video) && !isPaused()) play(video);
  };
  video.addEventListener("timeupdate", () => { if (video.currentTime >= segment.end - 0.05) rewind(); });
  video.addEventListener("ended", rewind);
  video.addEventListener("error", () => {
    video.hidden = true;
    item.querySelector(".unplayable").hidden = false;
  });
  showSegment(file);
  watcher.observe(video);

  const folder = item.querySelector(".folder");
  folder.textContent = folder.title = file.folder;
  folder.hidden = !file.folder;

  const columns = item.querySelector(".columns");
  const showColumns = (selected) => columns.replaceChildren(...columnRows({ ...file.columns, ...selected.columns }));
  showColumns(file);

  const segments = item.querySelector(".segments");
  segments.hidden = !file.others.length;
  const buttons = (file.others.length ? [file, ...file.others] : []).map((found) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = span(found);
    button.setAttribute("aria-pressed", String(found === file));
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      showSegment(found);
      showColumns(found);
    });
    return button;
  });
  segments.append(...buttons);

  const why = item.querySelector(".explain");
  if (shownQuery.text && about.explains) {
    const { text } = shownQuery;
    why.setAttribute("aria-label", `Why? Result ${file.rank}: ${file.name}`);
    why.addEventListener("click", () => explain(segment, text));
  } else {
    why.remove();
  }
  return item;
}

// Rows of the owner's columns that have a value; a long text opens at its first words.
function columnRows(columns) {
  return Object.entries(columns).filter(([, value]) => value !== null).map(([name, value]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name;
    description.append(...(Array.isArray(value) ? value.map((item) => shownText(item, "item")) : [shownText(value)]));
    row.append(term, description);
    return row;
  });
}

function shownText(text, className = "") {
  if (text.length <= MAX_SHOWN) return isolated(text, className);
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.append(isolated(`${text.slice(0, MAX_SHOWN).replace(/[\ud800-\udbff]$/, "")}…`));
  details.append(summary, isolated(text));
  return details;
}

// Text whose writing direction does not change that of its surroundings.
function isolated(text, className = "") {
  const element = document.createElement("bdi");
  element.className = className;
  element.textContent = text;
  return element;
}

function span({ start, end }) { return `${clock(start)}–${clock(end)}`; }

// Videos play while they are visible.
const inView = new Set();
const watcher = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (isIntersecting) {
      inView.add(target);
      if (!isPaused()) play(target);
    } else {
      inView.delete(target);
      target.pause();
    }
  }
}, { threshold: 0.4 });

function play(video) { video.play().catch(() => {}); } // a browser may block playback; the controls remain

function isPaused() { return byId("pause").getAttribute("aria-pressed") === "true"; }

byId("pause").setAttribute("aria-pressed", String(reducedMotion));
byId("pause").addEventListener("click", () => {
  byId("pause").setAttribute("aria-pressed", String(!isPaused()));
  for (const video of inView) isPaused() ? video.pause() : play(video);
});

// --- explanation of a result

let explaining = null;

async function explain(result, text) {
  const dialog = byId("why");
  explaining?.abort();
  explaining = new AbortController();
  const { signal } = explaining;
  byId("why-heading").textContent = `Why ${result.name}?`;
  byId("why-error").textContent = "";
  byId("why-body").replaceChildren();
  byId("why-status").textContent = "Computing the explanation; the first one loads the model …";
  dialog.showModal();
  try {
    const explanation = await request(`api/v1/explanation?${new URLSearchParams({ id: result.id, text })}`, { signal });
    byId("why-status").textContent = `“${text}”: score ${explanation.score.toFixed(3)}`;
    const picture = document.createElement("img");
    picture.src = explanation.picture;
    picture.alt = explanation.description;
    byId("why-body").append(picture);
    if (explanation.captions.length) {
      const heading = document.createElement("h3");
      heading.textContent =
        `Captions nearest to the pseudo-query of the video, of ${count(about.captions, "caption")}`;
      byId("why-body").append(heading, fillCaptions(document.createElement("ol"), explanation.captions));
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("why-status").textContent = "";
    byId("why-error").textContent = error.message;
  }
}

byId("close").addEventListener("click", () => byId("why").close());
byId("why").addEventListener("close", () => explaining?.abort());

function fillCaptions(list, captions) {
  list.className = "captions";
  for (const { text, score } of captions) {
    const item = document.createElement("li");
    const number = document.createElement("span");
    number.className = "quiet";
    number.textContent = score.toFixed(3);
    item.append(text, number);
    list.append(item);
  }
  return list;
}

// --- search by video

let upload = null; // the current request

function searchByVideo(file) {
  const want = new FormData(byId("upload")).get("want");
  const query = enteredQuery();
  searching?.abort();
  upload?.abort();
  clear();
  if (file.size > about.max_upload_bytes) {
    showError(`${file.name} has ${megabytes(file.size)}; at most ${megabytes(about.max_upload_bytes)} can be uploaded.`);
    return;
  }
  const address = want === "videos"
    ? `api/v1/search?${parametersOf(query, { k: PAGE_SIZE, group: true })}` : `api/v1/captions?k=${PAGE_SIZE}`;
  const sending = new XMLHttpRequest(); // `fetch` does not report the progress of an upload
  upload = sending;
  sending.open("POST", address);
  sending.setRequestHeader("Accept", "application/x-ndjson");
  sending.setRequestHeader("Content-Type", "application/octet-stream");
  const progress = byId("progress");
  byId("working").hidden = false;
  progress.value = 0;
  setStatus(`Sending ${file.name} …`);
  sending.upload.addEventListener("progress", ({ loaded, total }) => { progress.value = loaded / total; });
  sending.upload.addEventListener("load", () => progress.removeAttribute("value"));
  let numRead = 0; // lines of the response
  sending.addEventListener("progress", () => {
    const lines = sending.responseText.split("\n").slice(0, -1);
    for (; numRead < lines.length; numRead++) {
      const { stage } = JSON.parse(lines[numRead]);
      if (stage) setStatus(`${stage} …`);
    }
  });
  sending.addEventListener("load", () => {
    let last = {}; // message of the last line
    try {
      last = JSON.parse(sending.responseText.trim().split("\n").at(-1));
    } catch { /* not a response of this server */ }
    if (last.results) {
      shownQuery = { text: null };
      history.replaceState(null, "", location.pathname);
      show(last.results);
      setStatus(`${count(last.results.length, "result")} like ${file.name}`);
    } else if (last.captions) {
      byId("captions").hidden = false;
      fillCaptions(byId("captions"), last.captions);
      setStatus(`${count(last.captions.length, "caption")} for ${file.name}`);
    } else {
      showError(last.error ?? `The server failed with status ${sending.status}.`);
    }
  });
  sending.addEventListener("error", () => showError("The connection was lost before the results came: try again."));
  sending.addEventListener("abort", () => setStatus("Cancelled."));
  sending.addEventListener("loadend", () => {
    if (upload === sending) {
      upload = null;
      byId("working").hidden = true;
    }
  });
  sending.send(file);
}

function megabytes(bytes) { return `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`; }

// --- the page

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search(enteredQuery());
});
// More results of the shown query, not of the text that is in the box now.
byId("more").addEventListener("click", () => {
  search(shownQuery, Math.min(shownQuery.k + PAGE_SIZE, about.max_results));
});
byId("upload").addEventListener("submit", (event) => {
  event.preventDefault();
  searchByVideo(byId("file").files[0]);
});
byId("cancel").addEventListener("click", () => upload?.abort());

try {
  about = await request("api/v1/about");
  byId("about").textContent = `${about.clips.toLocaleString("en")} ${about.clips === 1 ? "entry" : "entries"}, ranked by ${about.model}`;
  byId("limit").textContent = megabytes(about.max_upload_bytes);
  byId("want").hidden = !about.captions;
  byId("path-help").hidden = about.is_public;
  for (const example of about.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example;
    button.addEventListener("click", () => {
      byId("text").value = example;
      search(enteredQuery());
    });
    byId("examples").append(button);
  }
  const address = new URLSearchParams(location.search);
  // A visitor may have typed or opened the filter before the facts arrived: keep that.
  if (address.has("text")) byId("text").value = address.get("text");
  if (address.has("where")) {
    byId("where").value = address.get("where");
    byId("more-options").open = true;
  }
  byId("facets").open = address.has("facet") || matchMedia("(min-width: 40rem)").matches;
  const facetsLoaded = loadFacets(address.getAll("facet"));
  if (address.has("facet")) await facetsLoaded; // the search is narrowed by them
  if (address.has("text")) search(enteredQuery());
} catch (error) {
  showError(error.message);
}
