// Requests to the server, with its errors as texts. If the server has tokens, it answers 401 until one is entered.

import { byId } from "./text.js";

export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // of HTTP; 0 without an answer
  }
}

export const address = (path, parameters = {}) => {
  const given = Object.entries(parameters).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  const query = new URLSearchParams(given.filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return `api/v1/${path}${query.size ? `?${query}` : ""}`;
};

export async function request(path, parameters = {}, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(address(path, parameters), options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError("The server does not respond: check that it is running.", 0);
    }
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    const message = body.error ?? `The server failed with status ${response.status}.`;
    if (response.status !== 401) throw new RequestError(message, response.status);
    await signIn();
  }
}

let signingIn = null; // one dialog for all requests that wait for it

function signIn() {
  signingIn ??= askForToken().finally(() => { signingIn = null; });
  return signingIn;
}

function askForToken() {
  const dialog = byId("sign-in");
  byId("token").value = byId("sign-in-error").textContent = "";
  dialog.showModal();
  byId("token").focus();
  return new Promise((resolve, reject) => {
    byId("sign-in-form").onsubmit = async (event) => {
      event.preventDefault();
      try {
        const body = JSON.stringify({ token: byId("token").value });
        const options = { method: "POST", body, headers: { "Content-Type": "application/json" } };
        const response = await fetch(address("login"), options);
        if (response.ok) {
          resolve();
          dialog.close();
        } else {
          const { error } = await response.json().catch(() => ({}));
          byId("sign-in-error").textContent = error ?? "The server refuses this token: check it.";
          byId("token").select();
        }
      } catch {
        byId("sign-in-error").textContent = "The server does not respond: check that it is running.";
      }
    };
    dialog.onclose = () => reject(new RequestError("This server asks for a token.", 401));
  });
}

const TITLES = {
  busy: "Server busy",
  deleted: "File deleted",
  offline: "Storage offline",
  unauthorized: "Token missing",
  undecodable: "Damaged file",
  unknown_id: "Not in the index",
};

// Why a picture or a video did not load, from the server's answer; `code` is null if the server does send it.
export async function reasonOf(source) {
  let response;
  try {
    response = await fetch(source, { headers: { Range: "bytes=0-0" } });
  } catch {
    return { code: "offline", title: "No connection", message: "The server does not respond: check that it is running." };
  }
  if (response.ok) return { code: null, title: "", message: "" };
  const { error = "", code = "internal" } = await response.json().catch(() => ({}));
  return { code, title: TITLES[code] ?? "Not available", message: error };
}
