// Why a query found a video: its frames with the selected patches, and the times at which the query fits best.

import { request } from "./api.js";
import { byId, count, isolated, make, number, preciseClock } from "./text.js";

const NUM_COLOURS = 7; // colours of phrases in style.css
const dialog = byId("why");
let explaining = null; // AbortController

export async function explain(video, text, about, playAt) {
  explaining?.abort();
  explaining = new AbortController();
  byId("why-heading").replaceChildren("Why ", isolated(video.name), "?");
  byId("why-error").textContent = "";
  byId("why-body").replaceChildren();
  byId("why-status").textContent = "Computing the explanation; the first one loads the model …";
  dialog.showModal();
  try {
    const explanation = await request("explanation", { id: video.id, text }, { signal: explaining.signal });
    byId("why-status").replaceChildren("“", isolated(text), "”: score ", number(explanation.score.toFixed(3)));
    const { times, captions } = explanation;
    const parts = [phrases(explanation), frames(explanation)];
    if (times?.length) parts.unshift(...bestTimes(times, (seconds) => { dialog.close(); playAt(video, seconds); }));
    if (captions.length) {
      parts.push(make("h3", {}, `Captions nearest to the pseudo-query of the video, of ${count(about.captions, "caption")}`));
      parts.push(fillCaptions(make("ol"), captions));
    }
    byId("why-body").append(...parts);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("why-status").textContent = "";
    byId("why-error").textContent = error.message;
  }
}

dialog.addEventListener("close", () => explaining?.abort());

// Bars, one per time, as buttons that play the video from there.
function bestTimes(times, play) {
  const scores = times.map(({ score }) => score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const bars = times.map(({ start, score }) => {
    const label = `Play from ${preciseClock(start)}, score ${score.toFixed(3)}`;
    const bar = make("span", { class: "fill" });
    bar.style.blockSize = `${Math.round(15 + 85 * (high > low ? (score - low) / (high - low) : 1))}%`;
    const isBest = score === high;
    const button = make("button", { type: "button", "aria-label": label, title: label, class: isBest ? "best" : null }, bar, number(preciseClock(start)));
    button.addEventListener("click", () => play(start));
    return button;
  });
  const best = times[scores.indexOf(high)];
  return [
    make("h3", {}, "When it fits best"),
    make("p", { class: "quiet" }, "Best at ", number(preciseClock(best.start)), ". Higher bars fit better; each plays from its time."),
    make("div", { class: "times", role: "group", "aria-label": "Times" }, ...bars),
  ];
}

function phrases({ phrases, selected }) {
  const box = make("div", { class: "legend" });
  box.append(make("h3", {}, selected === null ? "What the model looked at" : "What the model selected"));
  if (selected === null) {
    box.append(make("p", { class: "quiet" }, "Brighter parts have more attention. This kind of model selects no patches."));
    return box;
  }
  const items = phrases.map(({ text, count: matched }, place) => make(
    "li", { class: matched ? null : "none" }, make("span", { class: `key phrase-${place < NUM_COLOURS ? place : "none"}` }), isolated(text), number(String(matched)),
  ));
  const others = selected - phrases.reduce((sum, { count: matched }) => sum + matched, 0);
  items.push(make("li", {}, make("span", { class: "key phrase-none" }), "no phrase", number(String(others))));
  box.append(make("p", { class: "quiet" }, `${selected} patches of the frames, each outlined in the colour of the phrase that it fits.`));
  box.append(make("ul", {}, ...items));
  return box;
}

function frames({ frames, patch, description }) {
  const list = make("ol", { class: "frames", "aria-label": description });
  for (const { picture, time, number: place, patches } of frames) {
    const frame = make("div", { class: "frame" }, make("img", { src: picture, alt: "" }));
    for (const { x, y, phrase } of patches) {
      const box = make("span", { class: `patch phrase-${phrase === null || phrase >= NUM_COLOURS ? "none" : phrase}` });
      Object.assign(box.style, {
        left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * patch.width}%`, height: `${100 * patch.height}%`,
      });
      frame.append(box);
    }
    const label = time === null ? `frame ${place}` : preciseClock(time);
    list.append(make("li", {}, frame, make("p", { class: "quiet" }, number(label), patches.length ? ` · ${patches.length} selected` : "")));
  }
  return list;
}

export function fillCaptions(list, captions) {
  list.className = "captions";
  for (const { text, score } of captions) {
    list.append(make("li", {}, isolated(text), " ", make("span", { class: "quiet" }, number(score.toFixed(3)))));
  }
  return list;
}
