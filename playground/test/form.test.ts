import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError } from "vllm-forkjoin";
import { branchesAsked, EMPTY, type Form, requestOf, sequential, WrongForm } from "../src/form";
import { misfitOf } from "../src/schema";
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

const ROUNDED = { seed: "9007199254740993" };
for (const wrong of [{ seed: "x" }, ROUNDED, { temperature: "Infinity" }, { more: `{"forkjoin": 3}` }, { more: "{" }, { more: "[]" }, { mode: "vote" as const }, { mode: "branches" as const, branches: [] }]) {
  test(`${JSON.stringify(wrong)} is told, not sent`, () => {
    assert.throws(() => asked(wrong), WrongForm);
  });
}

const FORMAT = { type: "json_schema", json_schema: { name: "schema", schema: { type: "object" } } };

test("a schema is asked of the answer, or of what one branch writes", () => {
  const schema = ` {"type": "object"} `;
  assert.deepEqual(asked({ schema, structured: true }), { response_format: FORMAT, forkjoin: { structured: "answer" } });
  const branches = [{ title: "a", text: "", schema: " " }, { title: "b", text: "", schema }];
  assert.deepEqual(asked({ mode: "branches", branches }), {
    forkjoin: { branches: [{ title: "a", text: "" }, { title: "b", text: "", response_format: FORMAT }] },
  });
});

for (const schema of ["{", "3", "[]", "null"]) {
  test(`${schema} is refused as a schema, at its field`, () => {
    assert.throws(() => asked({ schema }), { place: "answer", message: /The answer’s schema: expected a JSON object/ });
    const branches = [{ title: "", text: "" }, { title: "b", text: "", schema }];
    assert.throws(() => asked({ mode: "branches", branches }), { place: 1, message: /The schema of branch 2: expected/ });
  });
}

test("a refusal stands at the field that it is about", () => {
  const form = { ...EMPTY, branches: [{ title: "", text: "" }, { title: "b", text: "" }] };
  const refused = (text: string, hasSchema = true, status = 400): unknown =>
    misfitOf(new ApiError(text, status), hasSchema, branchesAsked(form))?.place ?? null;
  assert.equal(refused("forkjoin.branches[0].response_format: no schema"), 1);
  assert.equal(refused("forkjoin.branches[7].response_format: no schema"), null);
  assert.equal(refused("response_format: expected numbers of 64 bits"), "answer");
  assert.equal(refused("Failed to transform json schema into a grammar: x"), "answer");
  assert.equal(refused("Failed to transform json schema into a grammar: x", false), null);
  assert.equal(refused("forkjoin.structured: expected a dialect for the grammar"), null);
  assert.equal(refused("max_tokens is too large"), null);
  assert.equal(refused("the schema crashed", true, 500), null);
  assert.equal(misfitOf(new Error("the schema"), true, []), null);
});

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
  const structured = requestOf({ ...EMPTY, prompt: "?", schema: `{"additionalProperties": false}` }, "m");
  assert.match(snippet("Python", structured, "http://x/v1", false), /^    response_format=\{$[^]*"additionalProperties": False/m);
});
