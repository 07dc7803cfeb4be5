// What the page does. Whatever comes from the server is put in as text, never as HTML.

const PAGE_SIZE = 12;
const byId = (id) => document.getElementById(id);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;

let about = { max_upload_bytes: 0 };
let asked = null; // what the gallery answers: {text, where, k}, text null for an uploaded video
let searching = null; // aborts the search under way

// --- asking the server

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
  return answer;
}

function say(text) { byId("status").textContent = text; }

function fail(message) {
  say("");
  byId("error").textContent = message;
}

function clear() {
  byId("error").textContent = "";
  byId("results").replaceChildren();
  byId("results").removeAttribute("aria-busy"); // of a search that was aborted
  byId("sentences").replaceChildren();
  byId("sentences").hidden = byId("more").hidden = byId("pause").hidden = true;
}

// --- searching with a sentence

function typed() { return { text: byId("text").value.trim(), where: byId("where").value.trim() }; }

async function search({ text, where }, k = PAGE_SIZE) {
  upload?.abort();
  searching?.abort();
  searching = new AbortController();
  const { signal } = searching;
  if (!text) {
    clear();
    fail("Say what to look for.");
    byId("text").focus();
    return;
  }
  const isMore = k > PAGE_SIZE;
  if (!isMore) clear();
  byId("error").textContent = "";
  say("Searching …");
  byId("results").setAttribute("aria-busy", "true");
  const parameters = new URLSearchParams({ text, k });
  if (where) parameters.set("where", where);
  try {
    const started = performance.now();
    const { results } = await ask(`search?${parameters}`, { signal });
    asked = { text, where, k };
    history.replaceState(null, "", `?${new URLSearchParams(where ? { text, where } : { text })}`);
    show(results, isMore);
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    say(results.length ? `${count(results.length, "clip")} for “${text}” in ${seconds} s` : `No clip for “${text}”.`);
    byId("more").hidden = results.length < k || k >= about.max_results;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!isMore) clear();
    fail(error.message);
  } finally {
    if (!signal.aborted) byId("results").removeAttribute("aria-busy");
  }
}

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
  let clip = file; // the part of the file that is shown

  function showClip(chosen) {
    clip = chosen;
    const facts = [`score ${clip.score.toFixed(3)}`];
    if (clip.start !== null) facts.unshift(span(clip));
    else if (clip.duration !== null) facts.unshift(clock(clip.duration));
    item.querySelector(".facts").textContent = facts.join(" · ");
    video.setAttribute("aria-label", `Clip ${file.rank}: ${file.name}${clip.start === null ? "" : `, ${span(clip)}`}`);
    video.hidden = false;
    item.querySelector(".unplayable").hidden = true;
    video.loop = clip.start === null; // `loop` goes back to the beginning of the file
    video.src = `video/${clip.id}${clip.start === null ? "" : `#t=${clip.start},${clip.end}`}`;
    if (inView.has(video) && !isPaused()) play(video);
  }
  const rewind = () => {
    if (clip.start === null || video.seeking) return;
    video.currentTime = clip.start;
    if (inView.has(video) && !isPaused()) play(video);
  };
  video.addEventListener("timeupdate", () => { if (video.currentTime >= clip.end - 0.05) rewind(); });
  video.addEventListener("ended", rewind);
  video.addEventListener("error", () => {
    video.hidden = true;
    item.querySelector(".unplayable").hidden = false;
  });
  showClip(file);
  watcher.observe(video);

  const folder = item.querySelector(".folder");
  folder.textContent = folder.title = file.folder;
  folder.hidden = !file.folder;

  const parts = item.querySelector(".parts");
  parts.hidden = !file.others.length;
  const chips = [file, ...file.others].map((part) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = file.others.length ? span(part) : "";
    chip.setAttribute("aria-pressed", String(part === file));
    chip.addEventListener("click", () => {
      for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
      showClip(part);
    });
    return chip;
  });
  if (file.others.length) parts.append(...chips);

  const why = item.querySelector(".explain");
  if (asked.text) {
    const { text } = asked;
    why.setAttribute("aria-label", `Why? Clip ${file.rank}: ${file.name}`);
    why.addEventListener("click", () => explain(clip, text));
  } else {
    why.remove();
  }
  return item;
}

function span({ start, end }) { return `${clock(start)}–${clock(end)}`; }

// Clips play while they can be seen.
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

function play(video) { video.play().catch(() => {}); } // a browser may refuse; the controls remain

function isPaused() { return byId("pause").getAttribute("aria-pressed") === "true"; }

byId("pause").setAttribute("aria-pressed", String(reducedMotion));
byId("pause").addEventListener("click", () => {
  byId("pause").setAttribute("aria-pressed", String(!isPaused()));
  for (const video of inView) isPaused() ? video.pause() : play(video);
});

// --- why?

let explaining = null;

async function explain(result, text) {
  const dialog = byId("why");
  explaining?.abort();
  explaining = new AbortController();
  const { signal } = explaining;
  byId("why-heading").textContent = `Why ${result.name}?`;
  byId("why-error").textContent = "";
  byId("why-body").replaceChildren();
  byId("why-status").textContent = "Looking into the model; the first time this loads it …";
  dialog.showModal();
  try {
    const answer = await ask(`why?${new URLSearchParams({ id: result.id, text })}`, { signal });
    byId("why-status").textContent = `“${text}”: score ${answer.score.toFixed(3)}`;
    const picture = document.createElement("img");
    picture.src = answer.picture;
    picture.alt = answer.description;
    byId("why-body").append(picture);
    if (answer.captions.length) {
      const heading = document.createElement("h3");
      heading.textContent =
        `What the model expected to be asked: nearest of ${count(about.captions, "sentence")} to its pseudo-query`;
      byId("why-body").append(heading, sentenceList(document.createElement("ol"), answer.captions));
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("why-status").textContent = "";
    byId("why-error").textContent = error.message;
  }
}

byId("close").addEventListener("click", () => byId("why").close());
byId("why").addEventListener("close", () => explaining?.abort());

function sentenceList(list, sentences) {
  list.className = "sentences";
  for (const { text, score } of sentences) {
    const item = document.createElement("li");
    const number = document.createElement("span");
    number.className = "quiet";
    number.textContent = score.toFixed(3);
    item.append(text, number);
    list.append(item);
  }
  return list;
}

// --- searching with a video

let upload = null; // the request under way

function lookAt(file) {
  const want = new FormData(byId("upload")).get("want");
  const where = byId("where").value.trim();
  searching?.abort();
  upload?.abort();
  clear();
  if (file.size > about.max_upload_bytes) {
    fail(`${file.name} has ${megabytes(file.size)}; at most ${megabytes(about.max_upload_bytes)} can be uploaded.`);
    return;
  }
  const parameters = new URLSearchParams({ want, k: PAGE_SIZE });
  if (where && want === "videos") parameters.set("where", where);
  const request = new XMLHttpRequest(); // `fetch` does not tell how much has been sent
  upload = request;
  request.open("POST", `upload?${parameters}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  const progress = byId("progress");
  byId("working").hidden = false;
  progress.value = 0;
  say(`Sending ${file.name} …`);
  request.upload.addEventListener("progress", ({ loaded, total }) => { progress.value = loaded / total; });
  request.upload.addEventListener("load", () => progress.removeAttribute("value"));
  let numRead = 0; // lines
  request.addEventListener("progress", () => {
    const lines = request.responseText.split("\n").slice(0, -1);
    for (; numRead < lines.length; numRead++) {
      const { stage } = JSON.parse(lines[numRead]);
      if (stage) say(`${stage} …`);
    }
  });
  request.addEventListener("load", () => {
    let answer = {};
    try {
      answer = JSON.parse(request.responseText.trim().split("\n").at(-1));
    } catch { /* no answer of ours */ }
    if (answer.results) {
      asked = { text: null };
      history.replaceState(null, "", location.pathname);
      show(answer.results);
      say(`${count(answer.results.length, "clip")} like ${file.name}`);
    } else if (answer.captions) {
      byId("sentences").hidden = false;
      sentenceList(byId("sentences"), answer.captions);
      say(`${count(answer.captions.length, "sentence")} that ${answer.captions.length === 1 ? "fits" : "fit"} ${file.name}`);
    } else {
      fail(answer.error ?? `The server answered ${request.status}.`);
    }
  });
  request.addEventListener("error", () => fail("The connection was lost before the answer: try again."));
  request.addEventListener("abort", () => say("Cancelled."));
  request.addEventListener("loadend", () => {
    if (upload === request) {
      upload = null;
      byId("working").hidden = true;
    }
  });
  request.send(file);
}

function megabytes(bytes) { return `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`; }

// --- the page

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search(typed());
});
// More of what is shown, whatever stands in the box by now.
byId("more").addEventListener("click", () => search(asked, Math.min(asked.k + PAGE_SIZE, about.max_results)));
byId("upload").addEventListener("submit", (event) => {
  event.preventDefault();
  lookAt(byId("file").files[0]);
});
byId("cancel").addEventListener("click", () => upload?.abort());

try {
  about = await ask("about");
  byId("about").textContent = `${count(about.clips, "clip")}, ranked by ${about.model}`;
  byId("limit").textContent = megabytes(about.max_upload_bytes);
  byId("want").hidden = !about.captions;
  byId("path-help").hidden = about.is_public;
  for (const example of about.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example;
    button.addEventListener("click", () => {
      byId("text").value = example;
      search(typed());
    });
    byId("examples").append(button);
  }
  const address = new URLSearchParams(location.search);
  byId("text").value = address.get("text") ?? "";
  byId("where").value = address.get("where") ?? "";
  byId("more-options").open = address.has("where");
  if (address.has("text")) search(typed());
} catch (error) {
  fail(error.message);
}
