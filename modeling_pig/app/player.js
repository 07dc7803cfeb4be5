// The player: one video in a dialog, its moments, facts and actions. What a browser does not play, the server converts.

import { address, reasonOf, request } from "./api.js";
import { actionsOf, factsOf } from "./cards.js";
import { byId, clock, columnRows, isolated, make, number, span } from "./text.js";

const PART_LENGTH = 120; // seconds; the server converts no more at a time
const dialog = byId("player");
const player = byId("video");
let shown = null; // {video, moment, list, actions}; `moment` is the played part of `video`, or `video` itself
let isConverted = false; // whether the clip is one that the server made: it begins at 0
let part = null; // {start, end} of a converted clip of a long video, in seconds

// `list`: the videos of the page, for "next" and "previous"; `onChange` is called with the played video, null at the end.
export function openPlayer(video, list, actions, onChange) {
  shown = { video, list, actions, onChange };
  byId("player-heading").replaceChildren(isolated(video.name));
  const moments = video.others?.length ? [video, ...video.others] : video.segments?.length > 1 ? video.segments : [];
  showMoments(moments);
  const position = list.indexOf(video);
  byId("previous").disabled = position < 1;
  byId("next").disabled = position < 0 || position === list.length - 1;
  play(video.segments?.find(({ id }) => id === video.wanted) ?? video);
  if (!dialog.open) dialog.showModal();
  onChange(video);
  if (!moments.length && video.entries > 1) loadMoments(video);
}

async function loadMoments(video) {
  try {
    const { segments } = await request(`videos/${video.id}`);
    video.segments = segments;
    if (shown?.video === video) showMoments(segments);
  } catch { /* the video plays without them */ }
}

function showMoments(moments) {
  byId("moments").hidden = !moments.length;
  byId("moments").replaceChildren(...moments.map((moment) => {
    const button = make("button", { type: "button", "aria-pressed": "false" }, number(span(moment)));
    if (moment.score !== undefined) button.append(" ", number(moment.score.toFixed(3)));
    button.moment = moment;
    button.addEventListener("click", () => play(moment));
    return button;
  }));
}

function play(moment) {
  const { video, actions } = shown;
  shown.moment = moment;
  const merged = { ...video, ...moment, others: [], columns: { ...video.columns, ...moment.columns }, name: video.name };
  byId("player-facts").replaceChildren(...factsOf(merged));
  if (video.path || video.folder) byId("player-facts").append(isolated(video.path ?? video.folder, "path"));
  byId("player-actions").replaceChildren(...actionsOf(merged, actions, true));
  byId("player-columns").replaceChildren(...columnRows(merged.columns));
  for (const button of byId("moments").children) button.setAttribute("aria-pressed", String(button.moment.id === moment.id));
  isConverted = false;
  part = null;
  showPart();
  load(address("clip", { id: moment.id, format: "original" }) + (isPart(moment) ? `#t=${moment.start},${moment.end ?? ""}` : ""));
}

const isPart = (moment) => moment.start !== null && moment.start !== undefined;

function load(source) {
  setStatus("");
  player.hidden = false;
  player.loop = !part && (!isPart(shown.moment) || isConverted); // `loop` restarts at the start of the file
  player.setAttribute("aria-label", `${shown.video.name}${isPart(shown.moment) ? `, ${span(shown.moment)}` : ""}`);
  player.src = source;
  player.poster = address("thumbnail", { id: shown.moment.id });
  player.play().catch(() => {}); // a browser may block sound before a click; the controls remain
}

function setStatus(text, detail = "") {
  byId("stage-status").replaceChildren(...(text ? [make("strong", {}, text), make("span", {}, detail)] : []));
}

// What to do if the browser does not play the file: play a converted one, or say why there is none.
async function convert() {
  const { moment } = shown;
  const { code, title, message } = await reasonOf(player.src);
  if (shown?.moment !== moment) return;
  if (isConverted || code !== null) {
    player.hidden = true;
    setStatus(code === null ? "This browser cannot play the video" : title, message);
    return;
  }
  isConverted = true;
  const [start, end] = bounds();
  if (end - start > PART_LENGTH) return playPart(start);
  load(address("clip", { id: moment.id, format: "mp4" }));
  sayConverting();
}

function sayConverting() { setStatus("Converting …", "This browser does not play the file as it is."); }

function bounds() { return [shown.moment.start ?? 0, shown.moment.end ?? shown.video.duration ?? 0]; }

function playPart(start) {
  part = { start, end: Math.min(start + PART_LENGTH, bounds()[1]) };
  showPart();
  load(address("clip", { id: shown.moment.id, format: "mp4", ...part }));
  sayConverting();
}

function showPart() {
  byId("part").hidden = !part;
  if (!part) return;
  const [start, end] = bounds();
  byId("part-span").replaceChildren("Part ", number(span(part)), " of ", number(clock(end)));
  byId("previous-part").disabled = part.start <= start;
  byId("next-part").disabled = part.end >= end;
}

byId("previous-part").addEventListener("click", () => playPart(Math.max(part.start - PART_LENGTH, bounds()[0])));
byId("next-part").addEventListener("click", () => playPart(part.end));

player.addEventListener("error", () => { if (shown && player.hasAttribute("src")) convert(); });
player.addEventListener("loadeddata", () => {
  if (!player.videoWidth && !isConverted) convert(); // sound only: the browser lacks a decoder for the pictures
  else setStatus("");
});

const rewind = () => {
  if (!shown || !isPart(shown.moment) || isConverted || player.seeking) return;
  player.currentTime = shown.moment.start;
  player.play().catch(() => {});
};
player.addEventListener("timeupdate", () => {
  if (shown && shown.moment.end && !isConverted && player.currentTime >= shown.moment.end - 0.05) rewind();
});
player.addEventListener("ended", () => {
  if (part && part.end < bounds()[1]) playPart(part.end);
  else rewind();
});

// Play from a time of the file, in seconds.
export function playFrom(seconds) {
  if (part && (seconds < part.start || seconds >= part.end)) return playPart(seconds);
  player.currentTime = seconds - (part?.start ?? (isConverted ? bounds()[0] : 0));
  player.play().catch(() => {});
}

export function closePlayer() { dialog.close(); }

dialog.addEventListener("close", () => {
  player.removeAttribute("src");
  player.load(); // stops the download
  const { onChange } = shown;
  shown = null;
  onChange(null);
});

function step(distance) {
  const { list, video, actions, onChange } = shown;
  const next = list[list.indexOf(video) + distance];
  if (next) openPlayer(next, list, actions, onChange);
}

byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));

