/** Asks the server, and yields the events of its answer. */

import { eventsOf } from "./assemble.js";
import { ApiError, ConnectionFailed, StreamBroken, Unreadable } from "./errors.js";
import type { Finished, ForkJoinEvent } from "./events.js";
import { type Retry, retryAfterS, withRetries } from "./retry.js";
import { eventData } from "./sse.js";
import type { ChatRequest, Chunk } from "./wire.js";

export interface ClientOptions {
  /** The server's address with the version: `http://localhost:8000/v1`. */
  baseUrl: string;
  apiKey?: string | undefined;
  /** How often to ask again after a 408, 429, 5xx or no answer at all. Default 2. */
  maxRetries?: number;
  /** The longest wait between two tries, in seconds; a longer `Retry-After` throws. Default 60. */
  maxDelayS?: number;
  fetch?: typeof fetch;
}

export interface CallOptions {
  /** Aborting closes the connection, and the server stops the request with all its threads. */
  signal?: AbortSignal;
  /** Called before each wait for another try. */
  onRetry?: (retry: Retry) => void;
}

/**
 *     const client = new ForkJoin({ baseUrl: "http://localhost:8000/v1" });
 *     for await (const event of client.stream({ model: "abacus", messages })) {
 *       if (event.type === "forked") console.log(event.threads.map((t) => t.title));
 *       if (event.type === "answer_delta") process.stdout.write(event.text);
 *     }
 */
export class ForkJoin {
  private readonly options: Required<Omit<ClientOptions, "apiKey">> & { apiKey: string | undefined };

  constructor({ baseUrl, apiKey, maxRetries = 2, maxDelayS = 60, fetch: ask }: ClientOptions) {
    // Browsers refuse a `fetch` that is called as another object's method.
    const fetch = ask ?? ((...args: Parameters<typeof globalThis.fetch>) => globalThis.fetch(...args));
    this.options = { baseUrl: baseUrl.replace(/\/+$/, ""), apiKey, maxRetries, maxDelayS, fetch };
  }

  /**
   * The events of one chat completion; the last one is `finished`.
   *
   * Throws `ApiError`, `ConnectionFailed` or `StreamBroken`. Only a request that has no answer yet is
   * sent again. Leaving the loop early cancels the request, as aborting the signal does.
   */
  async *stream(request: ChatRequest, options: CallOptions = {}): AsyncGenerator<ForkJoinEvent> {
    const body = streamed(request);
    const response = await this.fetch("/chat/completions", { method: "POST", body }, options);
    if (response.body === null) throw new StreamBroken("expected an event stream, got an empty answer");
    yield* eventsOf(chunksOf(response.body));
  }

  /** The whole answer, with the tree of its threads. Throws what `stream` throws. */
  async complete(request: ChatRequest, options: CallOptions = {}): Promise<Finished> {
    for await (const event of this.stream(request, options)) if (event.type === "finished") return event;
    throw new StreamBroken("expected a last event, got the end of the stream");
  }

  /**
   * Ends one thread of an answer that is being made, with the threads that it has forked. The others go on,
   * and the stream of the answer tells of the end.
   *
   * Throws `ApiError`, with the status 409 where the thread has ended already and 404 where the server knows no
   * such thread, or `ConnectionFailed`.
   */
  async cancelThread(threadId: string, options: CallOptions = {}): Promise<void> {
    await this.fetch(`/forkjoin/threads/${encodeURIComponent(threadId)}/cancel`, { method: "POST" }, options);
  }

  /**
   * Ends the lease of an answer that `keep` keeps, by the `id` of `finished`.
   *
   * Throws `ApiError`, with the status 404 where no answer of that id is kept, or `ConnectionFailed`.
   */
  async release(answerId: string, options: CallOptions = {}): Promise<void> {
    await this.fetch(`/forkjoin/kept/${encodeURIComponent(answerId)}/release`, { method: "POST" }, options);
  }

  /** The JSON of a GET below the base URL, such as `/models`. Throws `ApiError`, `ConnectionFailed` or `Unreadable`. */
  async get(path: string, options: CallOptions = {}): Promise<unknown> {
    const response = await this.fetch(path, { method: "GET" }, options);
    const text = await textOf(response, options.signal);
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Unreadable(`expected JSON from ${response.url}, got ${excerpt(text)}: check the address`, { cause: error });
    }
  }

  private fetch(path: string, init: RequestInit, { signal, onRetry }: CallOptions): Promise<Response> {
    const { baseUrl, apiKey, maxRetries, maxDelayS } = this.options;
    const headers: Record<string, string> = apiKey ? { authorization: `Bearer ${apiKey}` } : {};
    if (init.body !== undefined) headers["content-type"] = "application/json";
    const ask = async (): Promise<Response> => {
      const response = await this.reach(baseUrl + path, { ...init, headers, signal: signal ?? null });
      if (!response.ok) throw await refusal(response, signal);
      return response;
    };
    return withRetries(ask, { maxRetries, maxDelayS, signal, onRetry });
  }

  private async reach(url: string, init: RequestInit): Promise<Response> {
    try {
      return await this.options.fetch(url, init);
    } catch (error) {
      if (init.signal?.aborted) throw init.signal.reason;
      const hasTimedOut = isTimeout(error);
      const advice = hasTimedOut ? "in the time that fetch waits: give a fetch that waits longer" : "is the server running?";
      throw new ConnectionFailed(`expected an answer from ${url}, got none: ${advice}`, hasTimedOut, { cause: error });
    }
  }
}

/** The request as a stream that tells of its threads and its usage. */
function streamed(request: ChatRequest): string {
  const asked = { include_threads: true, include_usage: true, ...request.stream_options };
  return JSON.stringify({ ...request, stream: true, stream_options: asked });
}

/** The chunks of a stream's bytes. Throws `ApiError` for an error in it, `StreamBroken` for a missing end. */
export async function* chunksOf(bytes: ReadableStream<Uint8Array>): AsyncGenerator<Chunk> {
  try {
    for await (const data of eventData(bytes)) {
      if (data === "[DONE]") return;
      yield chunkOf(data);
    }
  } catch (error) {
    if (error instanceof TypeError) {
      throw new StreamBroken("the connection was lost before the answer was complete", { cause: error });
    }
    throw error;
  }
  throw new StreamBroken("expected [DONE] at the end of the stream, got the end of the connection");
}

function chunkOf(data: string): Chunk {
  let chunk: unknown;
  try {
    chunk = JSON.parse(data);
  } catch (error) {
    throw new StreamBroken(`expected a JSON object in the stream, got ${excerpt(data)}`, { cause: error });
  }
  if (typeof chunk === "object" && chunk !== null) {
    if ("error" in chunk) throw errorIn(chunk.error);
    if ("choices" in chunk && Array.isArray(chunk.choices)) return chunk as Chunk;
  }
  throw new StreamBroken(`expected a chunk with choices in the stream, got ${excerpt(data)}`);
}

function errorIn(error: unknown): ApiError {
  const { message, code } = (typeof error === "object" ? error : {}) as { message?: unknown; code?: unknown };
  return new ApiError(String(message ?? excerpt(JSON.stringify(error))), Number(code) || 500);
}

/** Whether `fetch` was tired of waiting for an answer: Node's waits 300 s for its head. Browsers don't say. */
function isTimeout(error: unknown): boolean {
  const { cause } = error as { cause?: { code?: unknown } };
  return cause?.code === "UND_ERR_HEADERS_TIMEOUT";
}

/** The body of `response`. Throws `ConnectionFailed` if it breaks off. */
async function textOf(response: Response, signal: AbortSignal | undefined): Promise<string> {
  try {
    return await response.text();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw new ConnectionFailed(`expected an answer from ${response.url}, got a part of one`, false, { cause: error });
  }
}

async function refusal(response: Response, signal: AbortSignal | undefined): Promise<ApiError> {
  const text = await textOf(response, signal);
  const after = retryAfterS(response.headers.get("retry-after"));
  let message = text ? excerpt(text) : `the server answered ${response.status} without a reason`;
  try {
    const body = JSON.parse(text) as { error?: { message?: unknown } };
    if (typeof body.error?.message === "string") message = body.error.message;
  } catch {
    // No JSON: a proxy's page, say. Its beginning is the message.
  }
  return new ApiError(message, response.status, after);
}

function excerpt(text: string): string {
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
