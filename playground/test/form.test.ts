import assert from "node:assert/strict";
import { test } from "node:test";

import { EMPTY, type Form, requestOf, sequential, WrongForm } from "../src/form";
import { snippet } from "../src/snippets";

function asked(form: Partial<Form>): Record<string, unknown> {
  const { messages, model, ...rest } = requestOf({ ...EMPTY, prompt: "?", ...form }, "m");
  return rest;
}

test("an empty field is left out, so that the server's default holds", () => {
  assert.deepEqual(asked({}), {});
  assert.deepEqual(asked({ temperature: "0", max_forks: "3" }), { temperature: 0, forkjoin: { max_forks: 3 } });
  assert.deepEqual(asked({ max_threads_running: "2" }), { forkjoin: { max_threads_running: 2 } });
});

test("each way to fork asks for its own fields only", () => {
  const vote = { best_of: "4", vote: "x", confidence: "0.9", prune: "own", wait_for_all: true };
  assert.deepEqual(asked({ mode: "vote", ...vote }), {
    forkjoin: { best_of: 4, confidence: 0.9, vote: "x", prune: "own", wait_for_all: true },
  });
  const branches = [{ title: "a", text: "" }, { title: "", text: "" }];
  assert.deepEqual(asked({ mode: "branches", branches, closing: "so" }), {
    forkjoin: { branches: [{ title: "a", text: "" }], closing: "so" },
  });
  assert.deepEqual(asked({ mode: "model", ...vote, branches }), {});
});

test("more fields are merged, those of forkjoin into it", () => {
  assert.deepEqual(asked({ max_forks: "3", more: `{"top_k": 2, "forkjoin": {"structured": "answer"}}` }), {
    forkjoin: { max_forks: 3, structured: "answer" }, top_k: 2,
  });
});

for (const wrong of [{ seed: "x" }, { more: "{" }, { more: "[]" }, { mode: "vote" as const }, { mode: "branches" as const, branches: [] }]) {
  test(`${JSON.stringify(wrong)} is told, not sent`, () => {
    assert.throws(() => asked(wrong), WrongForm);
  });
}

test("in a row is the same request with fork/join off", () => {
  const request = requestOf({ ...EMPTY, prompt: "?", seed: "1", max_forks: "2" }, "m");
  assert.deepEqual(sequential(request), { ...request, forkjoin: { enabled: false } });
});

test("a snippet quotes what a shell and Python would read otherwise", () => {
  const request = requestOf({ ...EMPTY, prompt: "it's \"so\"", structured: true, more: `{"top_k": 2}` }, "m");
  assert.match(snippet("curl", request, "http://x/v1", true), /it'\\''s/);
  assert.match(snippet("curl", request, "http://x/v1", true), /\$FORKJOIN_API_KEY/);
  const python = snippet("Python", request, "http://x/v1", false);
  assert.match(python, /extra_body=\{"forkjoin": \{"structured": "answer"\}, "top_k": 2\}/);
  assert.match(python, /"include_threads": True/);
});
