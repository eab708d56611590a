import assert from "node:assert/strict";
import { test } from "node:test";

import { noticesOf } from "../src/notices";
import { parseRecordings } from "../src/opening";
import type { Recording } from "../src/recording";
import { Run } from "../src/run";
import { Trace } from "../src/trace";

const VOTE = { index: 1, result: "x", cut: [], not_started: [], pruned: [] };
const FORKJOIN = { num_threads: 2, total_tokens: 4, critical_path_tokens: 3, vote: VOTE };
const USAGE = { prompt_tokens: 1, completion_tokens: 4, total_tokens: 5, forkjoin: FORKJOIN };
const THREADS = [{ index: 0, id: "th_0", title: "a" }, { index: 1, id: "th_1", title: "b" }];

/** One event of each kind that an answer to its end has. */
const RECORDING: Recording = {
  format: "forkjoin-recording",
  version: 1,
  request: { model: "m", messages: [] },
  startedAt: "2026-01-01T00:00:00.000Z",
  parentWaits: true,
  trigger: null,
  events: [
    { t: 1, type: "forked", parent: -1, threads: THREADS },
    { t: 2, type: "text", index: 1, text: "x" },
    { t: 2, type: "text", index: -1, text: "x", usage: USAGE },
    { t: 2, type: "waits", index: 0, for: "turn" },
    { t: 3, type: "ended", index: 0, reason: "stop", tokens: 1 },
    { t: 3, type: "ended", index: 1, reason: "stop", tokens: null },
    { t: 3, type: "joined", parent: -1, threads: [0, 1] },
    { t: 4, type: "finished", reason: "stop", usage: USAGE },
  ],
};

/** The file of RECORDING with `value` at `path`. */
function changed(path: string, value: unknown): string {
  const file = JSON.parse(JSON.stringify(RECORDING));
  const names = path.split(".");
  const last = names.pop() as string;
  names.reduce((inner, name) => inner[name], file)[last] = value;
  return JSON.stringify(file);
}

test("a saved answer opens as it was, alone and in a pair", () => {
  assert.deepEqual(parseRecordings(JSON.stringify(RECORDING)), [RECORDING]);
  assert.deepEqual(parseRecordings(JSON.stringify([RECORDING, RECORDING])), [RECORDING, RECORDING]);
});

test("an answer whose threads were hidden, or counted over several answers, opens too", () => {
  const hidden = [{ t: 4, type: "finished", reason: null, usage: USAGE }];
  assert.equal(Trace.of(parseRecordings(changed("events", hidden))[0] as Recording).chosen, null);
  const events = [{ t: 1, type: "forked", parent: -1, threads: [{ ...THREADS[0], index: 50 }] }, ...hidden];
  const trace = Trace.of(parseRecordings(changed("events", events))[0] as Recording);
  assert.equal(trace.threads.length, 1);
});

test("an answer that waited before it began opens with that wait", () => {
  const events = [{ t: 1, type: "waits", index: -1, for: "room" }, { t: 4, type: "finished", reason: null, usage: USAGE }];
  const trace = Trace.of(parseRecordings(changed("events", events))[0] as Recording);
  assert.equal(trace.root.waitsForAt(2), "room");
});

test("a file of another kind is refused with what was expected", () => {
  for (const [text, said] of [["no", "no JSON"], ["{}", "other JSON"], ["[]", "one recording"], ["[null]", "other JSON"]] as const) {
    assert.throws(() => parseRecordings(text), new RegExp(said));
  }
  assert.throws(() => parseRecordings(changed("version", 2)), /version 1, got version 2/);
});

const WRONG: [path: string, value: unknown, expected: string][] = [
  ["request", "x", "an object"],
  ["startedAt", 3, "a string"],
  ["parentWaits", "no", "true or false"],
  ["trigger", {}, "a string"],
  ["events", {}, "a list"],
  ["events.0", null, "an object"],
  ["events.0.type", "constructor", "a known type"],
  ["events.0.t", "1", "a time"],
  ["events.0.t", -1, "a time"],
  ["events.0.t", 1e300, "a time"],
  ["events.4.t", 1, "a time, none earlier"],
  ["events.0.parent", 0, "-1 or a thread"],
  ["events.0.threads", [], "a list that is not empty"],
  ["events.0.threads.1.index", "1", "an integer"],
  ["events.0.threads.1.index", 0.5, "an integer"],
  ["events.0.threads.1.index", 0, "an integer from 0 that no other thread has"],
  ["events.0.threads.1.title", { x: 1 }, "a string"],
  ["events.0.threads.1.id", null, "a string"],
  ["events.1.index", "length", "-1 or a thread"],
  ["events.1.text", 7, "a string"],
  ["events.2.usage.completion_tokens", "4", "an integer"],
  ["events.3.index", 2, "-1 or a thread that was forked before"],
  ["events.3.for", null, "a string"],
  ["events.4.index", -1, "a thread that was forked before"],
  ["events.4.reason", {}, "a string"],
  ["events.4.tokens", 1.5, "an integer"],
  ["events.6.threads", [2], "a thread that was forked before"],
  ["events.6", { t: 3, type: "finished", reason: null, usage: null }, "no event behind the end"],
  ["events.7.usage.forkjoin.vote.index", "length", "an integer"],
  ["events.7.usage.forkjoin.vote", 1, "an object"],
  ["events.7.usage.forkjoin.total_tokens", null, "an integer"],
  ["events.7", { t: 4, type: "stopped", how: "so", message: "" }, "how it stopped"],
  ["events.7", { t: 4, type: "stopped", how: "failed", message: {} }, "a string"],
];

for (const [path, value, expected] of WRONG) {
  test(`${JSON.stringify(value)} in ${path} is refused`, () => {
    assert.throws(() => parseRecordings(changed(path, value)), new RegExp(`^Error: expected ${expected}`));
  });
}

test("an answer without an end is stopped where it breaks off", () => {
  const [cut] = parseRecordings(changed("events", RECORDING.events.slice(0, 3))) as [Recording];
  const run = new Run(cut, () => {});
  assert.equal(run.isRunning, false);
  assert.equal(run.trace.endedAt, 2);
  assert.match(noticesOf(run)[0]?.text ?? "", /its recording has no end/);
  const [empty] = parseRecordings(changed("events", [])) as [Recording];
  assert.equal(Trace.of(empty).endedAt, 0);
});
