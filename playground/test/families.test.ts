import assert from "node:assert/strict";
import { test } from "node:test";
import { age, type Engine, expectationOf, type Family, keptOf, parseFamilies, threadsOf, waitsOf } from "../src/operator/families";

const family = (threads: Partial<Family["threads"]>): Family => ({
  request_id: "a",
  age_s: 1,
  state: "forked",
  waits_for: [],
  threads: { running: 0, waiting: 0, parked: 0, ended: 0, ...threads },
  total_tokens: 1,
  critical_path_tokens: 1,
  kv_blocks: 1,
  peak_kv_blocks: null,
  expected_kv_blocks: null,
});

test("threads are counted by the states that some are in", () => {
  assert.equal(threadsOf(family({ running: 2, ended: 1 })), "2 running, 1 ended");
  assert.equal(threadsOf(family({})), "–");
});

test("what a family waits for is named, or a dash stands there", () => {
  assert.equal(waitsOf({ ...family({}), waits_for: ["wave", "turn"] }), "wave, turn");
  assert.equal(waitsOf(family({})), "–");
});

test("what is expected is said as a sentence would", () => {
  const engine = { expected: { tokens: 511.6, threads: 4, forking_share: 0.955 } } as Engine;
  assert.equal(expectationOf(engine), "512 tokens; 96 % fork, the widest fork into 4.0 threads");
});

test("what is kept is said beside what may be", () => {
  const kept = { kv_blocks: 12, max_kv_blocks: 250, num_answers: 1, answers: [] };
  assert.equal(keptOf({ kept } as unknown as Engine), "1 answer, 12 of 250 KV blocks");
  assert.equal(keptOf({ kept: { ...kept, num_answers: 2 } } as unknown as Engine), "2 answers, 12 of 250 KV blocks");
});

test("ages are in seconds, minutes and hours", () => {
  assert.deepEqual([0.04, 59.9, 61, 3599, 3600, 7384].map(age), ["0.0 s", "59.9 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "2 h 3 min"]);
});

test("an answer that is none is an error", () => {
  assert.deepEqual(parseFamilies(`{"object": "forkjoin.families", "engines": []}`), []);
  assert.throws(() => parseFamilies("<html>"), SyntaxError);
});
