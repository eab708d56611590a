import assert from "node:assert/strict";
import { test } from "node:test";

import { attribute, ownText } from "../src/attribution";
import type { Timed } from "../src/recording";
import { type Lane, Trace } from "../src/trace";
import { newsOf, seconds, stateOf } from "../src/words";

const DIALECT = { parentWaits: true, trigger: "</Outlines>" };

function traced(events: Timed[], dialect = DIALECT): Trace {
  const trace = new Trace(dialect);
  for (const event of events) trace.take(event);
  return trace;
}

function text(t: number, index: number, written: string): Timed {
  return { t, type: "text", index, text: written };
}

function forked(t: number, parent: number, ...indices: number[]): Timed {
  return { t, type: "forked", parent, threads: indices.map((index) => ({ index, id: `${index}`, title: `t${index}` })) };
}

function ended(t: number, index: number, tokens: number): Timed {
  return { t, type: "ended", index, reason: "stop", tokens };
}

function finished(t: number, total: number, critical: number): Timed {
  const forkjoin = { num_threads: 2, total_tokens: total, critical_path_tokens: critical };
  return { t, type: "finished", reason: "stop", usage: { prompt_tokens: 1, completion_tokens: total, total_tokens: total + 1, forkjoin } };
}

/** A fork of two threads, the second of which forks by itself; the engine lays it out in a row. */
const NESTED: Timed[] = [
  text(10, -1, "so:"),
  forked(20, -1, 0, 1),
  text(30, 0, "aa"),
  text(30, -1, "<1>aa"),
  text(40, 1, "b"),
  ended(45, 0, 1),
  forked(50, 1, 2, 3),
  text(60, 2, "cc"),
  text(60, 3, "d"),
  ended(70, 2, 1),
  ended(80, 3, 1),
  { t: 80, type: "joined", parent: 1, threads: [2, 3] },
  text(90, 1, "B"),
  ended(100, 1, 2),
  { t: 100, type: "joined", parent: -1, threads: [0, 1] },
  text(110, -1, "<2>b<3>cc<4>dB!"),
  text(120, -1, "end"),
  finished(130, 8, 6),
];

test("lanes stand below whoever forked them, numbered as in an outline", () => {
  const rows = traced(NESTED).rows();
  assert.deepEqual(rows.map((lane) => [lane.number, lane.depth]), [["", 0], ["1", 1], ["2", 1], ["2.1", 2], ["2.2", 2]]);
});

test("at any moment a lane has the text and the state that it had then", () => {
  const trace = traced(NESTED);
  const lane = trace.lane(1);
  assert.deepEqual([5, 25, 40, 55, 85, 90, 100].map((t) => [lane?.textAt(t), lane?.stateAt(t)]), [
    ["", null],
    ["", "waiting"],
    ["b", "running"],
    ["b", "parked"],
    ["b", "waiting"],
    ["bB", "running"],
    ["bB", "ended"],
  ]);
});

test("a pause in a lane's tokens is told as waiting", () => {
  const trace = traced([forked(0, -1, 0), text(100, 0, "a"), text(200, 0, "b"), text(900, 0, "c")]);
  const lane = trace.lane(0);
  assert.deepEqual(lane?.spans, [
    { kind: "waiting", from: 0, to: 100 },
    { kind: "running", from: 100, to: 200 },
    { kind: "waiting", from: 200, to: 900 },
    { kind: "running", from: 900, to: 900 },
  ]);
  assert.equal(lane?.spentAt("waiting", 1000), 800);
  assert.equal(lane?.stateAt(650), "waiting");
});

test("a lane waits for what the server says, until it writes or ends", () => {
  const waits = (t: number, index: number, why: string): Timed => ({ t, type: "waits", index, for: why });
  const trace = traced([
    forked(0, -1, 0, 1), waits(1, 0, "wave"), waits(50, 0, "turn"), waits(90, 0, "nothing"), text(100, 0, "a"),
    text(150, 0, "b"), waits(200, 0, "room"), ended(300, 0, 2), waits(300, 1, "else"),
  ]);
  const lane = trace.lane(0) as Lane;
  assert.deepEqual([20, 60, 95, 150, 250].map((t) => [lane.stateAt(t), lane.waitsForAt(t)]), [
    ["waiting", "wave"], ["waiting", "turn"], ["waiting", null], ["running", null], ["waiting", "room"],
  ]);
  assert.deepEqual([60, 400].map((t) => stateOf(lane, t)), ["waits for its turn", "done"]);
  assert.equal(lane.spentAt("waiting", 400), 200);
  assert.equal(stateOf(trace.lane(1) as Lane, 400), "waits for else");
});

test("at the end the counts are the server's, and what is no thread's is the parent's", () => {
  const trace = traced(NESTED);
  assert.deepEqual(trace.countsAt(130), { total: 8, critical: 6, isFinal: true });
  assert.equal(trace.root.tokens, 3);
});

test("the critical path takes the longest thread of each fork, with its own forks", () => {
  const path = [...traced(NESTED).criticalAt(130)].map((lane) => lane.number);
  assert.deepEqual(path, ["", "2", "2.1"]);
});

test("a parent that does not wait is never parked", () => {
  const trace = traced(NESTED, { ...DIALECT, parentWaits: false });
  assert.deepEqual(trace.rows().filter((lane) => lane.spans.some((span) => span.kind === "parked")), []);
});

test("each piece of the transcript is of the lane that wrote it, nested ones too", () => {
  const trace = traced(NESTED);
  const transcript = trace.root.textAt(130);
  const pieces = attribute(trace, transcript, 130);
  assert.equal(pieces.map((p) => p.text).join(""), transcript);
  const of = (number: string): string => pieces.filter((p) => p.lane.number === number).map((p) => p.text).join("|");
  assert.deepEqual([of("1"), of("2.1"), of("2.2")], ["aa", "cc", "d"]);
  assert.equal(of("2"), "b<3>|<4>|B");
  assert.equal(ownText(trace, 130), "so:<1>⋯<2>⋯!end");
});

test("of a vote the answer is the chosen thread's", () => {
  const usage = { prompt_tokens: 1, completion_tokens: 4, total_tokens: 5 };
  const vote = { index: 1, result: "x", cut: [], not_started: [], pruned: [] };
  const forkjoin = { num_threads: 2, critical_path_tokens: 2, total_tokens: 4, vote };
  const trace = traced([
    forked(1, -1, 0, 1), text(2, 0, "x"), text(2, 1, "x"), ended(3, 0, 1), ended(3, 1, 1), text(4, -1, "x"),
    { t: 5, type: "finished", reason: "stop", usage: { ...usage, forkjoin } },
  ]);
  assert.deepEqual(attribute(trace, "x", 5).map((p) => p.lane.index), [1]);
});

test("threads whose indices leave gaps are the only ones", () => {
  const trace = traced([forked(1, -1, 1, 50), text(2, 50, "x"), finished(3, 2, 1)]);
  assert.equal(trace.threads.length, 2);
  assert.equal(trace.lane(50)?.number, "2");
  assert.deepEqual(trace.countsAt(2), { total: 1, critical: 1, isFinal: false });
});

test("an answer that was stopped ends all its lanes", () => {
  const trace = traced([forked(1, -1, 0, 1), ended(2, 0, 1), { t: 3, type: "stopped", how: "cancelled", message: "" }]);
  assert.deepEqual(trace.rows().map((lane) => lane.reason), ["cancelled", "stop", "cancelled"]);
});

test("a screen reader hears of the last fork, not of all threads", () => {
  const events = [forked(10, -1, 0, 1), ended(20, 0, 1), ended(20, 1, 1), { t: 20, type: "joined", parent: -1, threads: [0, 1] } as const];
  const heard = [...events, forked(30, -1, 2, 3), ended(40, 2, 1)].map((_, i, all) => newsOf(traced(all.slice(0, i + 1)), 50));
  assert.deepEqual(heard.slice(-3), ["2 threads joined.", "Forked into 2 threads, 0 of them ended.", "Forked into 2 threads, 1 of them ended."]);
  assert.equal(newsOf(traced([...NESTED]), 200), "The answer is complete.");
});

test("times are rounded as a whole, so that no minute has sixty seconds", () => {
  assert.deepEqual([1234, 12_345, 60_000, 119_600, 3_599_700].map(seconds), ["1.23 s", "12.3 s", "1 min 0 s", "2 min 0 s", "60 min 0 s"]);
});
