import assert from "node:assert/strict";
import { test } from "node:test";

import { keep, kept, taken } from "../src/kept";

class Store extends Map<string, string> {
  getItem = (name: string): string | null => this.get(name) ?? null;
  setItem = (name: string, text: string): unknown => this.set(name, text);
  removeItem = (name: string): unknown => this.delete(name);
}

test("what is taken is there once: a page that fails at it does not fail again", () => {
  Object.assign(globalThis, { sessionStorage: new Store() });
  keep("answers", [1]);
  assert.deepEqual(taken("answers"), [1]);
  assert.equal(taken("answers"), null);
  keep("form", {});
  assert.deepEqual([kept("form"), kept("form")], [{}, {}]);
});
