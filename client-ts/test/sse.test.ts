import assert from "node:assert/strict";
import { test } from "node:test";

import { eventData } from "../src/sse.js";
import { gather } from "./gather.js";

/** A stream of `text` in pieces of `size` bytes. */
function bytes(text: string, size: number): ReadableStream<Uint8Array> {
  const all = new TextEncoder().encode(text);
  return new ReadableStream({
    start(controller) {
      for (let at = 0; at < all.length; at += size) controller.enqueue(all.slice(at, at + size));
      controller.close();
    },
  });
}

const WELL = ": a comment\n\ndata: one\n\nevent: x\r\ndata: two €\r\n\r\ndata:three\rdata: more\r\rdata: [DONE]\n\n";

for (const size of [1, 2, 3, 7, 1000]) {
  test(`events are the same in pieces of ${size} bytes`, async () => {
    const seen = await gather(eventData(bytes(WELL, size)));
    assert.deepEqual(seen, ["one", "two €", "three\nmore", "[DONE]"]);
  });
}

test("a long line is put together once", async () => {
  const size = 4096;
  const num = 4000;
  const piece = new TextEncoder().encode("x".repeat(size));
  let left = num;
  const long = new ReadableStream<Uint8Array>({
    pull: (controller) => {
      if (left === num) controller.enqueue(new TextEncoder().encode("data: "));
      if (left-- > 0) return controller.enqueue(piece);
      controller.enqueue(new TextEncoder().encode("\n\n"));
      controller.close();
    },
  });
  const began = process.cpuUsage();
  const [data] = await gather(eventData(long));
  assert.equal(data?.length, num * size);
  const { user } = process.cpuUsage(began);
  assert.ok(user < 3e6, `${user} µs`);
});

test("an event without its blank line is dropped", async () => {
  assert.deepEqual(await gather(eventData(bytes("data: a\n\ndata: b", 4))), ["a"]);
});

test("who stops reading closes the connection", async () => {
  let isCancelled = false;
  const endless = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: x\n\n")),
    cancel: () => {
      isCancelled = true;
    },
  });
  for await (const data of eventData(endless)) {
    assert.equal(data, "x");
    break;
  }
  assert.ok(isCancelled);
});
