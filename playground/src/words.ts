/** Numbers and states as the page writes them. */

import type { Lane, Trace } from "./trace";

export function seconds(ms: number): string {
  if (ms < 10_000) return `${(ms / 1000).toFixed(2)} s`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const whole = Math.round(ms / 1000);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

/** Tokens a second, over the time in which the lane ran. */
export function speed(tokens: number, ms: number): string {
  return ms > 0 ? `${Math.round(tokens / (ms / 1000))}/s` : "–";
}

export function times(ratio: number): string {
  return `${ratio.toFixed(ratio < 10 ? 2 : 1)}×`;
}

export function nameOf(lane: Lane): string {
  return lane.parent === null ? "Answer" : `Thread ${lane.number}`;
}

const ENDS: Record<string, [string, string]> = {
  stop: ["done", "It came to its own end."],
  length: ["cut at a limit", "A limit, or the end of the answer, cut it."],
  cut: ["no longer needed", "It could change nothing any more, so it was stopped."],
  not_started: ["not started", "The vote was decided before it wrote anything."],
  pruned: ["pruned", "The pruning policy that the request asked for stopped it."],
  cancelled: ["cancelled", "You cancelled it, or the request that it is of."],
  interrupted: ["interrupted", "The answer was not complete."],
  failed: ["failed", "The answer failed before it was complete."],
  tool_calls: ["tool call", "The answer ends with a call of a tool."],
};

/** How a lane ended: in a word or two, and in a sentence. */
export function endOf(reason: string | null): [string, string] {
  return ENDS[reason ?? "stop"] ?? [reason ?? "done", `The server says: ${reason}.`];
}

const WAITS: Record<string, [string, string]> = {
  wave: ["waits for its wave", "It starts if the threads before it do not decide the vote."],
  dependencies: ["waits for its dependencies", "It starts when the threads that it depends on have been joined."],
  turn: ["waits for its turn", "Others run first: the server's policy, its slots or max_threads_running say so."],
  room: ["waits for room", "No slot is free, or too few KV blocks for what it needs."],
  grammar: ["waits for its grammar", "The grammar of its response_format is compiled."],
  prompt: ["waits for its prompt", "Its prompt is computed."],
};

/** What a thread, or an answer that has not begun, waits for: in a few words, and in a sentence. */
export function waitOf(why: string): [string, string] {
  return WAITS[why] ?? [`waits for ${why}`, `The server says that it waits for ${why}.`];
}

/** What stands in the place of an answer that has no text at `t`. */
export function emptinessOf(trace: Trace, t: number): string {
  if (trace.endedAt !== null) return "No text.";
  if (trace.hasBegun) return "Waiting for the first token…";
  const why = trace.root.waitsForAt(t);
  return `Waiting for the server, ${Math.floor(t / 1000)} s.${why === null ? "" : ` ${waitOf(why)[1]}`}`;
}

/** What has happened last until now, the time `t`, in a sentence. */
export function newsOf(trace: Trace, t: number): string {
  const { forks, endedAt, stopped, root } = trace;
  if (endedAt !== null) return stopped === null ? "The answer is complete." : `The answer ended: ${stopped.message}.`;
  const why = root.waitsForAt(t);
  if (!trace.hasBegun) return why === null ? "" : `The answer ${waitOf(why)[0]}.`;
  const last = forks.at(-1);
  if (last === undefined) return "The answer has begun.";
  const { lanes, joinedAt } = last;
  if (joinedAt !== null) return `${count(lanes.length, "thread")} joined.`;
  const numOver = lanes.filter((lane) => lane.endedAt !== null).length;
  return `Forked into ${count(lanes.length, "thread")}, ${numOver} of them ended.`;
}

const STATES = { running: "running", waiting: "waiting", parked: "its threads run", ended: "ended" };

export function stateOf(lane: Lane, t: number): string {
  const state = lane.stateAt(t);
  if (state === null) return "not started yet";
  const why = lane.waitsForAt(t);
  if (why !== null) return waitOf(why)[0];
  return state === "ended" ? endOf(lane.reason)[0] : STATES[state];
}
