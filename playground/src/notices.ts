/** What went wrong with an answer, in words, with what to do about it. */

import { ApiError, ConnectionFailed, StreamBroken, Unreadable } from "vllm-forkjoin";
import { forks } from "./recording";
import type { Run } from "./run";

export interface Notice {
  kind: "error" | "warning";
  title: string;
  text: string;
}

/** The notices of a run, the most important first. */
export function noticesOf(run: Run): Notice[] {
  const { stopped } = run.trace;
  const notices: Notice[] = [];
  if (run.error !== null && stopped?.how === "failed") notices.push(ofError(run.error));
  else if (stopped?.how === "failed") notices.push({ kind: "error", title: "The answer failed", text: stopped.message });
  if (stopped?.how === "interrupted") {
    notices.push({
      kind: "warning",
      title: "Interrupted",
      text: `The answer is not complete: ${stopped.message}. Run it again for the rest.`,
    });
  }
  if (run.threadError !== null) {
    const { text } = ofError(run.threadError);
    notices.push({ kind: "warning", title: "The thread was not cancelled", text });
  }
  const missed = missedForks(run);
  if (missed > 0 && !run.isRunning) {
    notices.push({
      kind: "warning",
      title: missed === 1 ? "A fork did not happen" : `${missed} forks did not happen`,
      text:
        `The model wrote ${run.recording.trigger}, but no threads started: its outline could not be read, or a limit ` +
        "was reached. It went on in a row, as the dialect's policy says.",
    });
  }
  if (run.trace.finishReason === "length") {
    notices.push({
      kind: "warning",
      title: "Cut short",
      text: "The answer reached a limit: max_tokens, a limit of fork/join, or the model's context.",
    });
  }
  return notices;
}

/** How often the model wrote the token that forks, and nothing forked. */
export function missedForks(run: Run): number {
  const { trigger, request } = run.recording;
  if (trigger === null || !forks(request) || request.forkjoin?.best_of || request.forkjoin?.branches) return 0;
  return Math.max(0, run.trace.root.text.split(trigger).length - 1 - run.trace.forks.length);
}

export function ofError(error: unknown): Notice {
  if (error instanceof ConnectionFailed) {
    return {
      kind: "error",
      title: "The server does not answer",
      text: "It may have stopped, or the network is down. Start it, then run the prompt again.",
    };
  }
  if (error instanceof StreamBroken) {
    return { kind: "error", title: "The answer broke off", text: `${sentence(error.message)} What came is kept below.` };
  }
  if (error instanceof Unreadable) {
    return { kind: "error", title: "Something else answers in the server’s place", text: sentence(error.message) };
  }
  if (error instanceof ApiError) return { kind: "error", ...ofStatus(error) };
  return { kind: "error", title: "The playground failed", text: String(error) };
}

function ofStatus({ status, message, retryAfterS }: ApiError): { title: string; text: string } {
  if (status === 401) return { title: "The server wants another API key", text: sentence(message) };
  if (status === 429 || status === 503) {
    const later = retryAfterS === null ? "" : ` It asks to be tried again in ${Math.ceil(retryAfterS)} s.`;
    return { title: "The server is too busy", text: sentence(message) + later };
  }
  if (status >= 500) return { title: "The server failed", text: sentence(message) };
  return { title: "The server refused the request", text: sentence(message) };
}

function sentence(message: string): string {
  const text = message.trim();
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
