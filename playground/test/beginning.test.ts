import assert from "node:assert/strict";
import { test } from "node:test";
import { ForkJoin } from "vllm-forkjoin";
import { freshName, waitIn, watchBeginning } from "../src/beginning";
import type { Engine, Family } from "../src/operator/families";
import { ROOT_LANE, type Timed } from "../src/recording";
import { Trace } from "../src/trace";
import { emptinessOf, stateOf } from "../src/words";

function engines(...families: Partial<Family>[]): Engine[] {
  return families.map((family) => ({ families: [family] }) as Engine);
}

const room = (name: string): Partial<Family> => ({ request_id: `chatcmpl-${name}-fj1`, state: "waiting", waits_for: ["room"] });

/** A client of a server whose families are these, one answer after another, the last one for ever. */
function served(...answers: (Engine[] | number)[]): ForkJoin {
  const fetch = async (): Promise<Response> => {
    const answer = (answers.length > 1 ? answers.shift() : answers[0]) ?? [];
    if (typeof answer === "number") return new Response("", { status: answer });
    return new Response(JSON.stringify({ engines: answer }));
  };
  return new ForkJoin({ baseUrl: "http://s/v1", maxRetries: 0, fetch: fetch as typeof globalThis.fetch });
}

test("a request is found by the name that it was sent with, and by no other's", () => {
  const all = engines({ request_id: null }, room("ab"), { ...room("a"), waits_for: ["turn", "room"] });
  assert.equal(waitIn(all, "a"), "turn");
  assert.equal(waitIn(all, "b"), null);
  assert.equal(waitIn(engines({ ...room("a"), state: "prefill", waits_for: [] }), "a"), "prompt");
  assert.equal(waitIn(engines({ ...room("a"), state: "decoding", waits_for: [] }), "a"), null);
  assert.match(freshName(), /^[0-9a-f]{32}$/);
  assert.notEqual(freshName(), freshName());
});

test("what a request waits for is told when it changes, until it begins", async () => {
  const begun = new AbortController();
  const told: string[] = [];
  const turn = { ...room("a"), waits_for: ["turn"] };
  const api = served([], engines(turn), engines(turn), engines(room("a")));
  await watchBeginning(api, "a", begun.signal, (wait) => {
    told.push(wait);
    if (wait === "room") begun.abort();
  }, 1);
  assert.deepEqual(told, ["turn", "room"]);
});

test("a server that shows no families is asked once", async () => {
  await watchBeginning(served(401), "a", new AbortController().signal, () => assert.fail("told"), 1);
});

test("an answer that has not begun says how long it waits, and for what, until its first token", () => {
  const trace = new Trace({ parentWaits: true, trigger: null });
  const events: Timed[] = [
    { t: 1000, type: "waits", index: ROOT_LANE, for: "turn" },
    { t: 2000, type: "waits", index: ROOT_LANE, for: "room" },
  ];
  assert.equal(emptinessOf(trace, 900), "Waiting for the server, 0 s.");
  for (const event of events) trace.take(event);
  assert.match(emptinessOf(trace, 1500), /^Waiting for the server, 1 s\. Others run first/);
  assert.match(emptinessOf(trace, 3200), /^Waiting for the server, 3 s\. No slot is free/);
  assert.equal(stateOf(trace.root, 3200), "waits for room");
  trace.take({ t: 4000, type: "text", index: ROOT_LANE, text: "a" });
  assert.equal(trace.root.stateAt(4100), "running");
  assert.equal(trace.root.spentAt("waiting", 4100), 4000);
});

test("an answer without text whose threads write does not wait for the server", () => {
  const trace = new Trace({ parentWaits: true, trigger: null });
  trace.take({ t: 10, type: "forked", parent: ROOT_LANE, threads: [{ index: 0, id: "th_0", title: "x" }] });
  assert.equal(emptinessOf(trace, 900), "Waiting for the first token…");
  trace.take({ t: 20, type: "finished", reason: "stop", usage: null });
  assert.equal(emptinessOf(trace, 900), "No text.");
});
