import assert from "node:assert/strict";
import { test } from "node:test";

import { Assembler, eventsOf } from "../src/assemble.js";
import type { ForkJoinEvent } from "../src/events.js";
import type { Chunk, Delta, Segment, ThreadEntry, ToolCallPiece } from "../src/wire.js";
import { gather } from "./gather.js";

function chunk(delta: Delta, finish_reason: string | null = null): Chunk {
  return { choices: [{ index: 0, delta, finish_reason }] };
}

function threads(...entries: ThreadEntry[]): Chunk {
  return chunk({ threads: entries });
}

function started(index: number, parent_id = "root"): ThreadEntry {
  return { index, id: `th_${index}`, parent_id, title: `t${index}`, content: "" };
}

function ended(index: number, completion_tokens = 1, finish_reason = "stop"): ThreadEntry {
  return { index, finish_reason, usage: { completion_tokens } };
}

function taken(...chunks: Chunk[]): ForkJoinEvent[] {
  const answer = new Assembler();
  return chunks.flatMap((c) => answer.take(c));
}

test("a fork is one event with all its threads", () => {
  const events = taken(threads(started(0), started(1)));
  assert.deepEqual(events.map((e) => e.type), ["forked"]);
  assert.deepEqual(events.flatMap((e) => (e.type === "forked" ? e.threads.map((t) => t.title) : [])), ["t0", "t1"]);
});

test("a fork is joined when its last thread ends, in whatever order", () => {
  const events = taken(threads(started(0), started(1)), threads(ended(1)), chunk({ content: "x" }), threads(ended(0)));
  assert.deepEqual(events.map((e) => e.type), ["forked", "thread_ended", "answer_delta", "thread_ended", "joined"]);
});

test("nested threads stand below whoever forked them, and join by themselves", () => {
  const answer = new Assembler();
  const nested = threads(started(2, "th_1"), started(3, "th_1"));
  const events = [threads(started(0), started(1)), nested, threads(ended(2), ended(3)), threads(ended(0), ended(1))]
    .flatMap((c) => answer.take(c));
  const joined = events.flatMap((e) => (e.type === "joined" ? [e.parentId] : []));
  assert.deepEqual(joined, ["th_1", "root"]);
  assert.deepEqual(answer.finish().tree.map((t) => t.children.map((c) => c.index)), [[], [2, 3]]);
});

test("a second fork of the same parent is a fork of its own", () => {
  const events = taken(threads(started(0)), threads(ended(0)), threads(started(1), started(2)), threads(ended(2), ended(1)));
  const joined = events.flatMap((e) => (e.type === "joined" ? [e.threads.map((t) => t.index)] : []));
  assert.deepEqual(joined, [[0], [1, 2]]);
});

test("an entry may bring a start, text and an end at once", () => {
  const events = taken(threads({ ...started(0), content: "all", ...ended(0, 3, "length") }));
  assert.deepEqual(events.map((e) => e.type), ["forked", "thread_delta", "thread_ended", "joined"]);
  assert.equal(events[1]?.type === "thread_delta" && events[1].thread.completionTokens, 3);
});

test("a thread says what it waits for, and when it runs again", () => {
  const waits = ["turn", "nothing"].map((type) => threads({ index: 1, waits_for: { type } }));
  const events = taken(threads(started(0), started(1)), ...waits);
  const told = events.flatMap((e) => (e.type === "thread_waits" ? [[e.thread.index, e.waitsFor]] : []));
  assert.deepEqual(told, [[1, "turn"], [1, "nothing"]]);
});

test("text in the reasoning field is told apart from the answer", async () => {
  const usage = { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 };
  const chunks = [{ id: "chatcmpl-1", ...chunk({ reasoning: "hm" }) }, chunk({ content: "ab" }), chunk({ content: "c" }, "stop"), { choices: [], usage }];
  const events = await gather(eventsOf((async function* () { yield* chunks; })()));
  assert.deepEqual(events.at(-1), {
    type: "finished", id: "chatcmpl-1", content: "abc", reasoning: "hm", toolCalls: [], finishReason: "stop", usage, tree: [],
    tokenTree: null,
  });
});

test("tool calls come in pieces, and whole at the end", () => {
  const answer = new Assembler();
  const calls = (...tool_calls: ToolCallPiece[]): ForkJoinEvent[] => answer.take(chunk({ tool_calls }));
  calls({ index: 0, id: "c0", type: "function", function: { name: "add", arguments: "" } });
  const [event] = calls({ index: 0, function: { arguments: '{"a":' } }, { index: 1, id: "c1", function: { name: "halt" } });
  assert.deepEqual(event?.type === "answer_delta" && [event.text, event.toolCalls.map((c) => c.index)], ["", [0, 1]]);
  calls({ index: 0, function: { arguments: "1}" } });
  assert.deepEqual(answer.finish().toolCalls, [
    { id: "c0", type: "function", function: { name: "add", arguments: '{"a":1}' } },
    { id: "c1", type: "function", function: { name: "halt", arguments: "" } },
  ]);
});

test("a server may skip the index of a tool call", () => {
  const answer = new Assembler();
  answer.take(chunk({ tool_calls: [{ index: 1, id: "c1", function: { name: "halt", arguments: "{}" } }] }));
  assert.deepEqual(answer.finish().toolCalls, [
    { id: "c1", type: "function", function: { name: "halt", arguments: "{}" } },
  ]);
});

test("chunks that end before the answer has are a broken stream", async () => {
  const cut = (async function* () { yield chunk({ content: "ab" }); })();
  await assert.rejects(gather(eventsOf(cut)), /StreamBroken: expected a finish_reason/);
});

test("choices beside the first and empty texts bring nothing", () => {
  const other: Chunk = { choices: [{ index: 1, delta: { content: "x" } }] };
  assert.deepEqual(taken(other, chunk({ content: "" }), chunk({ role: "assistant" }), { choices: [] }), []);
});

test("the tree of an answer comes with the chunk that ends it", () => {
  const answer = new Assembler();
  const tree = { segments: [], answer_ids: [7], voted: null };
  answer.take({ choices: [{ index: 0, delta: {}, finish_reason: "stop", tree }] });
  assert.deepEqual(answer.finish().tokenTree, tree);
  assert.equal(new Assembler().finish().tokenTree, null);
});

test("segments that were sent before stand in the tree again", () => {
  const segment = (token: number): Segment => ({
    thread: -1, token_ids: [token], num_injected: 0, position: 0, parent: null, fork_offset: 0, forked_by: null,
    joined: [], logprobs: null, top_logprobs: null, seed: null, finish_reason: null, title: "", weight_version: null,
    has_old_kv: null,
  });
  const end = (segments: (Segment | null)[]): Chunk => ({
    choices: [{ index: 0, delta: {}, finish_reason: "stop", tree: { segments, answer_ids: [], voted: null } }],
  });
  const sent: Chunk = { choices: [{ index: 0, delta: {}, segments: [{ number: 1, segment: segment(8) }] }] };
  const answer = new Assembler();
  assert.deepEqual(answer.take(sent), [{ type: "segment_ended", number: 1, segment: segment(8) }]);
  answer.take(end([segment(7), null]));
  assert.deepEqual(answer.finish().tokenTree?.segments.map((s) => s.token_ids), [[7], [8]]);
  assert.throws(() => new Assembler().take(end([segment(7), null])), /expected segment 1 of the tree/);
});
