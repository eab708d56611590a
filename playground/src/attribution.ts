/** Which part of the transcript which lane wrote. */

import type { Lane, Trace } from "./trace";

export interface Piece {
  lane: Lane;
  text: string;
}

/**
 * `transcript` in pieces by lane, in order. A thread's text is looked for behind the text of the thread
 * before it, which is how the engine lays the transcript out; what is not found is the parent's.
 */
export function attribute(trace: Trace, transcript: string, t: number): Piece[] {
  const pieces: Piece[] = [];
  const add = (lane: Lane, text: string): void => {
    if (text) pieces.push({ lane, text });
  };
  let at = 0;
  const chosen = trace.chosen;
  for (const lane of chosen === null ? trace.rows().slice(1) : [chosen]) {
    const text = lane.textAt(t);
    const rest = transcript.length - at;
    if (!text || rest <= 0) continue;
    const found = transcript.indexOf(text, at);
    // The live thread's text may be ahead of the transcript by some tokens, or behind it.
    const start = found >= 0 ? found : startOfPrefix(transcript, text, at);
    if (start < 0) continue;
    const end = found >= 0 ? found + text.length : transcript.length;
    add(lane.parent ?? trace.root, transcript.slice(at, start));
    add(lane, transcript.slice(start, end));
    at = end;
  }
  add(trace.root, transcript.slice(at));
  return pieces;
}

/** Where the transcript ends with the beginning of `text`; -1 if it does not. */
function startOfPrefix(transcript: string, text: string, from: number): number {
  const head = text.slice(0, 12);
  for (let start = transcript.indexOf(head, from); start >= 0; start = transcript.indexOf(head, start + 1)) {
    if (text.startsWith(transcript.slice(start))) return start;
  }
  return -1;
}

/** What the parent itself wrote, with a mark where its threads' text stands. */
export function ownText(trace: Trace, t: number): string {
  const pieces = attribute(trace, trace.root.textAt(t), t);
  return pieces.map((p) => (p.lane === trace.root ? p.text : "⋯")).join("");
}
