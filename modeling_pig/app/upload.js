// Search by a video file: sends it, shows the stages, and hands the results to the page.

import { address } from "./api.js";
import { byId, bytes } from "./text.js";

const dialog = byId("upload");
let sending = null; // the current XMLHttpRequest: `fetch` does not report the progress of an upload

// `parametersOf`: filter and page of the results; `onResults`, `onCaptions`: called with the answer and the file's name.
export function startUpload(about, parametersOf, onResults, onCaptions) {
  byId("limit").textContent = bytes(about.max_upload_bytes);
  byId("want").hidden = !about.captions;
  byId("by-video").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("close", cancelUpload);
  byId("cancel").addEventListener("click", cancelUpload);
  byId("upload-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send(byId("file").files[0]);
  });
  // A file that is dropped on the page is searched with at once.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (!file) return;
    if (!dialog.open) dialog.showModal();
    send(file);
  });

  function send(file) {
    cancelUpload();
    showError("");
    if (file.size > about.max_upload_bytes) {
      return showError(`${file.name} has ${bytes(file.size)}; at most ${bytes(about.max_upload_bytes)} can be uploaded.`);
    }
    const want = new FormData(byId("upload-form")).get("want");
    const request = new XMLHttpRequest();
    sending = request;
    request.open("POST", want === "captions" ? address("captions", { k: 12 }) : address("search", parametersOf()));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("Accept", "application/x-ndjson");
    const progress = byId("progress");
    byId("working").hidden = false;
    progress.value = 0;
    setStatus(`Sending ${file.name} …`);
    request.upload.addEventListener("progress", ({ loaded, total }) => { progress.value = loaded / total; });
    request.upload.addEventListener("load", () => progress.removeAttribute("value"));
    let numRead = 0; // lines of the response
    request.addEventListener("progress", () => {
      const lines = request.responseText.split("\n").slice(0, -1);
      for (; numRead < lines.length; numRead++) {
        const { stage } = JSON.parse(lines[numRead]);
        if (stage) setStatus(`${stage} …`);
      }
    });
    request.addEventListener("load", () => {
      let last = {}; // message of the last line
      try {
        last = JSON.parse(request.responseText.trim().split("\n").at(-1));
      } catch { /* not a response of this server */ }
      if (last.results) {
        dialog.close();
        onResults(last, file.name);
      } else if (last.captions) {
        dialog.close();
        onCaptions(last.captions, file.name);
      } else {
        showError(last.error ?? `The server failed with status ${request.status}.`);
      }
    });
    request.addEventListener("error", () => showError("The connection was lost before the results came: try again."));
    request.addEventListener("abort", () => setStatus("Cancelled."));
    request.addEventListener("loadend", () => {
      if (sending === request) {
        sending = null;
        byId("working").hidden = true;
      }
    });
    request.send(file);
  }
}

function setStatus(text) { byId("upload-status").textContent = text; }

function showError(message) {
  setStatus("");
  byId("upload-error").textContent = message;
}

export function cancelUpload() { sending?.abort(); }
