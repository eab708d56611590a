import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type TestContext, test } from "node:test";

import { ApiError, ConnectionFailed, ForkJoin, StreamBroken, Unreadable } from "../src/index.js";
import { type Retry, retryAfterS } from "../src/retry.js";

const ASK = { model: "m", messages: [{ role: "user", content: "?" }] };
const CHUNK = `data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n`;
const DONE = "data: [DONE]\n\n";
/** How a whole answer ends. */
const END = `data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n${DONE}`;

type Answer = (response: ServerResponse, request: IncomingMessage) => void;

/** A server on loopback that gives each of `answers` once, then the last again; its base URL. */
async function serving(t: TestContext, ...answers: Answer[]): Promise<{ baseUrl: string; asked: IncomingMessage[] }> {
  const asked: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    const answer = answers[Math.min(asked.push(request), answers.length) - 1];
    request.resume().on("end", () => answer?.(response, request));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`, asked };
}

function streams(...parts: string[]): Answer {
  return (response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(parts.join(""));
  };
}

function refuses(status: number, message: string, headers: Record<string, string> = {}): Answer {
  return (response) => {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(JSON.stringify({ error: { message } }));
  };
}

test("an overloaded server is asked again after as long as it wants", async (t) => {
  const { baseUrl, asked } = await serving(t, refuses(503, "full", { "retry-after": "0" }), streams(CHUNK, END));
  const retries: Retry[] = [];
  const answer = await new ForkJoin({ baseUrl }).complete(ASK, { onRetry: (r) => retries.push(r) });
  assert.equal(answer.content, "x");
  assert.equal(asked.length, 2);
  assert.deepEqual(retries.map((r) => [r.attempt, r.delayS, r.error.message]), [[1, 0, "full"]]);
});

test("it gives up after its retries, with what the server said", async (t) => {
  const { baseUrl, asked } = await serving(t, refuses(429, "too many", { "retry-after": "0" }));
  const client = new ForkJoin({ baseUrl, maxRetries: 1 });
  await assert.rejects(client.complete(ASK), (e) => e instanceof ApiError && e.status === 429 && e.message === "too many");
  assert.equal(asked.length, 2);
});

test("a wait beyond the limit is an error at once, with the wait in it", async (t) => {
  const { baseUrl, asked } = await serving(t, refuses(503, "full", { "retry-after": "3600" }));
  await assert.rejects(new ForkJoin({ baseUrl }).complete(ASK), (e) => e instanceof ApiError && e.retryAfterS === 3600);
  assert.equal(asked.length, 1);
});

test("a thread is cancelled by its id, and one that has ended is an error at once", async (t) => {
  const accepted: Answer = (response) => response.writeHead(202).end("{}");
  const { baseUrl, asked } = await serving(t, accepted, refuses(409, "it has ended already: stop"));
  const client = new ForkJoin({ baseUrl, apiKey: "k" });
  await client.cancelThread("th_1/x");
  await assert.rejects(client.cancelThread("th_2"), (e) => e instanceof ApiError && e.status === 409);
  assert.deepEqual(
    asked.map((r) => [r.method, r.url, r.headers.authorization]),
    [
      ["POST", "/v1/forkjoin/threads/th_1%2Fx/cancel", "Bearer k"],
      ["POST", "/v1/forkjoin/threads/th_2/cancel", "Bearer k"],
    ],
  );
});

test("a kept answer is released by its id, and one that is not kept is an error at once", async (t) => {
  const released: Answer = (response) => response.writeHead(200).end("{}");
  const { baseUrl, asked } = await serving(t, released, refuses(404, "no answer of that id is kept"));
  const client = new ForkJoin({ baseUrl });
  await client.release("chatcmpl-1/x");
  await assert.rejects(client.release("chatcmpl-2"), (e) => e instanceof ApiError && e.status === 404);
  assert.deepEqual(
    asked.map((r) => [r.method, r.url]),
    [
      ["POST", "/v1/forkjoin/kept/chatcmpl-1%2Fx/release"],
      ["POST", "/v1/forkjoin/kept/chatcmpl-2/release"],
    ],
  );
});

test("a wrong request is sent once", async (t) => {
  const { baseUrl, asked } = await serving(t, refuses(400, "forkjoin: no such key"));
  await assert.rejects(new ForkJoin({ baseUrl }).complete(ASK), /no such key/);
  assert.equal(asked.length, 1);
});

test("an answer that is no JSON is told by its beginning", async (t) => {
  const page: Answer = (response) => response.writeHead(404).end("<html>nothing here</html>");
  const { baseUrl } = await serving(t, page);
  await assert.rejects(new ForkJoin({ baseUrl }).get("/models"), /<html>nothing here/);
});

test("an error in the stream is an ApiError, and nothing is sent twice", async (t) => {
  const error = `data: {"error": {"message": "the engine has died", "code": 500}}\n\n`;
  const { baseUrl, asked } = await serving(t, streams(CHUNK, error, DONE));
  await assert.rejects(new ForkJoin({ baseUrl }).complete(ASK), (e) => e instanceof ApiError && e.status === 500);
  assert.equal(asked.length, 1);
});

for (const [name, parts] of [
  ["without its end", [CHUNK]],
  ["with half a JSON object", [`data: {"choices": [\n\n`]],
  ["with a chunk of another shape", [`data: {"object": "list"}\n\n`]],
] as const) {
  test(`a stream ${name} is broken`, async (t) => {
    const { baseUrl } = await serving(t, streams(...parts));
    await assert.rejects(new ForkJoin({ baseUrl }).complete(ASK), StreamBroken);
  });
}

test("a connection that is lost in the middle is a broken stream", async (t) => {
  const { baseUrl } = await serving(t, (response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(CHUNK, () => response.destroy());
  });
  await assert.rejects(new ForkJoin({ baseUrl }).complete(ASK), StreamBroken);
});

test("no server at all is a failed connection", async (t) => {
  const { baseUrl } = await serving(t, (response) => response.destroy());
  await assert.rejects(new ForkJoin({ baseUrl, maxRetries: 0 }).complete(ASK), ConnectionFailed);
});

test("a server that takes longer than fetch waits is not asked again: it would have more to do", async (t) => {
  const { baseUrl, asked } = await serving(t, () => undefined);
  // Node's own fetch, with less patience; its class of dispatchers is nowhere else without a dependency.
  await fetch(baseUrl, { signal: AbortSignal.timeout(1) }).catch(() => undefined);
  const { constructor: Agent } = (globalThis as never as Record<symbol, { constructor: new (o: object) => object }>)[
    Symbol.for("undici.globalDispatcher.1")
  ]!;
  const dispatcher = new Agent({ headersTimeout: 200 });
  const impatient: typeof fetch = (url, init) => fetch(url, { ...init, dispatcher } as RequestInit);
  asked.length = 0;
  await assert.rejects(new ForkJoin({ baseUrl, fetch: impatient }).complete(ASK), (e) => e instanceof ConnectionFailed && e.hasTimedOut);
  assert.equal(asked.length, 1);
});

test("a page in the place of JSON is told by its beginning", async (t) => {
  const page: Answer = (response) => response.end("<html>log in</html>");
  const { baseUrl } = await serving(t, page);
  await assert.rejects(new ForkJoin({ baseUrl }).get("/models"), (e) => e instanceof Unreadable && /<html>log in/.test(e.message));
});

test("a refusal that breaks off is a failed connection, and is asked again", async (t) => {
  const cut: Answer = (response) => {
    response.writeHead(503, { "content-length": "100" });
    response.write("{", () => response.destroy());
  };
  const { baseUrl, asked } = await serving(t, cut);
  await assert.rejects(new ForkJoin({ baseUrl, maxRetries: 1 }).complete(ASK), ConnectionFailed);
  assert.equal(asked.length, 2);
});

test("aborting ends a stream with the signal's reason, and its connection", async (t) => {
  let closed: Promise<unknown> = Promise.resolve();
  const { baseUrl } = await serving(t, (response) => {
    closed = new Promise((resolve) => response.on("close", resolve));
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(CHUNK);
  });
  const abort = new AbortController();
  const stream = new ForkJoin({ baseUrl }).stream(ASK, { signal: abort.signal });
  assert.equal((await stream.next()).value?.type, "answer_delta");
  abort.abort(new Error("enough"));
  await assert.rejects(stream.next(), /enough/);
  await closed;
});

test("aborting ends a wait for another try", async (t) => {
  const { baseUrl, asked } = await serving(t, refuses(503, "full", { "retry-after": "30" }));
  const abort = new AbortController();
  const asking = new ForkJoin({ baseUrl }).complete(ASK, { signal: abort.signal, onRetry: () => abort.abort() });
  await assert.rejects(asking, { name: "AbortError" });
  assert.equal(asked.length, 1);
});

test("the key is sent, the threads are asked for, and unknown fields pass", async (t) => {
  let body = "";
  let key: string | undefined;
  const { baseUrl } = await serving(t, (response, request) => {
    key = request.headers.authorization;
    streams(END)(response, request);
  });
  const keep: typeof fetch = (url, init) => {
    body = String(init?.body);
    return fetch(url, init);
  };
  await new ForkJoin({ baseUrl: `${baseUrl}/`, apiKey: "k", fetch: keep }).complete({ ...ASK, top_k: 3 });
  assert.equal(key, "Bearer k");
  assert.deepEqual(JSON.parse(body), {
    ...ASK, top_k: 3, stream: true, stream_options: { include_threads: true, include_usage: true },
  });
});

test("a conversation with tools can be sent, and is typed", async (t) => {
  const { baseUrl } = await serving(t, streams(END));
  const messages = [
    { role: "assistant", tool_calls: [{ id: "c0", type: "function", function: { name: "add", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "c0", content: "3" },
  ];
  let body = "";
  const keep: typeof fetch = (url, init) => fetch(url, { ...init, body: (body = String(init?.body)) });
  await new ForkJoin({ baseUrl, fetch: keep }).complete({ model: "m", messages, tool_choice: "auto" });
  await new ForkJoin({ baseUrl }).complete({ model: "m", messages: [{ role: "tool", tool_call_id: "c0", content: "3" }] });
  assert.deepEqual(JSON.parse(body).messages, messages);
});

test("Retry-After is read as seconds and as a date", () => {
  assert.equal(retryAfterS("2.5"), 2.5);
  assert.equal(retryAfterS("Thu, 01 Jan 1970 00:00:10 GMT", 4000), 6);
  assert.equal(retryAfterS("Thu, 01 Jan 1970 00:00:01 GMT", 4000), 0);
  assert.equal(retryAfterS("soon"), null);
});
