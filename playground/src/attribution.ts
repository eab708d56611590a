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
  const { root, chosen } = trace;
  within(root, chosen === null ? threadsOf(root) : [chosen], transcript, t, pieces);
  return pieces;
}

/** What the parent itself wrote, with a mark where its threads' text stands. */
export function ownText(trace: Trace, t: number): string {
  const pieces = attribute(trace, trace.root.textAt(t), t);
  const own = pieces.map((p) => (p.lane === trace.root ? p.text : "⋯")).join("");
  return own.replace(/⋯+/g, "⋯");
}

function within(lane: Lane, threads: Lane[], text: string, t: number, pieces: Piece[]): void {
  let at = 0;
  const add = (end: number): void => {
    if (end > at) pieces.push({ lane, text: text.slice(at, end) });
  };
  for (const thread of threads) {
    const place = placeOf(thread, text, at, t);
    if (place === null) continue;
    const [start, end] = place;
    add(start);
    within(thread, threadsOf(thread), text.slice(start, end), t, pieces);
    at = end;
  }
  add(text.length);
}

function threadsOf(lane: Lane): Lane[] {
  return lane.forks.flatMap((fork) => fork.lanes);
}

/** From where to where `thread` and its own threads wrote `text`, behind `from`. */
function placeOf(thread: Lane, text: string, from: number, t: number): [number, number] | null {
  const written = thread.textAt(t);
  if (written === "" || from >= text.length) return null;
  const whole = text.indexOf(written, from);
  if (whole >= 0) return [whole, whole + written.length];
  const [fork] = thread.forks;
  const joinedAt = thread.forks.at(-1)?.joinedAt ?? t;
  const start = fork === undefined ? startOfPrefix(text, written, from) : text.indexOf(thread.textAt(fork.at), from);
  if (start < 0) return null;
  // The thread's text may be ahead of the transcript, or have its own threads' in the middle.
  const tail = written.slice(thread.textAt(joinedAt).length);
  const end = fork === undefined || tail === "" ? -1 : text.indexOf(tail, start);
  return [start, end < 0 ? text.length : end + tail.length];
}

/** So much of a text's beginning is enough to find it again. */
const HEAD_CHARS = 24;

/** Where `text` ends with the beginning of `written`; -1 if it does not. */
function startOfPrefix(text: string, written: string, from: number): number {
  const head = written.slice(0, HEAD_CHARS);
  for (let start = text.indexOf(head, from); start >= 0; start = text.indexOf(head, start + 1)) {
    if (written.startsWith(text.slice(start))) return start;
  }
  return -1;
}
