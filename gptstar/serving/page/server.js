// What the page asks the server, and what it makes of refusals.

import { kept } from "./dom.js";

// An answer that is none: the server's words and its status, 0 where there was no answer at all.
export class Refused extends Error {
  constructor(words, status) { super(words); this.status = status; }
}

const head = () => {
  const key = kept.get("key", "sessionStorage");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

export async function models() {
  const answer = await reach("api/models", { headers: head() });
  return answer.json();
}

// Asks for texts and hands over each event of the stream, until the last one or until the signal says stop.
export async function stream(asked, hear, signal) {
  const headers = { "Content-Type": "application/json", ...head() };
  const answer = await reach("api/stream", { method: "POST", headers, body: JSON.stringify(asked), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let running = asked.n;
  while (running) {
    const { done, value } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      return { done: true };
    });
    if (done) throw new Refused("The connection broke before the end.", 0);
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const each of events) {
      const event = JSON.parse(each.slice("data: ".length));
      if (event.type === "error") throw new Refused(event.error, event.status);
      running -= event.type === "end";
      hear(event);
    }
  }
}

async function reach(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused("The server cannot be reached.", 0);
  }
  if (!answer.ok) throw await refused(answer);
  return answer;
}

async function refused(answer) {
  const said = await answer.json().catch(() => null);
  const reason = said?.error?.message ?? said?.error ?? `The server answered ${answer.status}.`;
  const seconds = answer.headers.get("Retry-After");
  const again = answer.status === 429 && seconds && !reason.includes(seconds) ? `; come again in ${seconds} s` : "";
  return new Refused(reason + again, answer.status);
}
