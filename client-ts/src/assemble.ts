/** Turns chunks into events and keeps the tree of threads. Decides only: no input or output. */

import { StreamBroken } from "./errors.js";
import type { ForkJoinEvent, Thread } from "./events.js";
import type { Chunk, Segment, ThreadEntry, TokenTree, ToolCall, ToolCallPiece, Usage } from "./wire.js";

/** The parent of the threads that the request itself forked. */
export const ROOT = "root";

/** One fork and the number of its threads that are still open. */
interface Fork {
  parentId: string;
  threads: Thread[];
  numOpen: number;
}

/**
 * The state of one answer. `take` returns the events of a chunk; `finish` returns the last one.
 *
 *     const answer = new Assembler();
 *     for await (const chunk of stream) for (const event of answer.take(chunk)) …
 *     const { tree, content } = answer.finish();
 */
export class Assembler {
  /** All threads by index. */
  readonly threads: Thread[] = [];
  /** The threads that the request itself forked. */
  readonly tree: Thread[] = [];
  private id: string | null = null;
  private content = "";
  private reasoning = "";
  /** By index: a server may skip one, of a call that has no name. */
  private readonly toolCalls = new Map<number, ToolCall>();
  private finishReason: string | null = null;
  private usage: Usage | null = null;
  private tokenTree: TokenTree | null = null;
  /** Of the tree, as far as they have ended, by their numbers. */
  private readonly segments = new Map<number, Segment>();
  private readonly byId = new Map<string, Thread>();
  private readonly forkOf = new Map<number, Fork>();

  /** The events that `chunk` brings. Throws `StreamBroken` where one before it is missing. */
  take(chunk: Chunk): ForkJoinEvent[] {
    const events: ForkJoinEvent[] = [];
    this.id = chunk.id ?? this.id;
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices.find((c) => c.index === 0);
    if (choice === undefined) return events;
    this.takeThreads(choice.delta.threads ?? [], events);
    const { content, reasoning, reasoning_content } = choice.delta;
    this.takeText(reasoning ?? reasoning_content, true, chunk, events);
    this.takeText(content, false, chunk, events);
    this.takeCalls(choice.delta.tool_calls ?? [], chunk, events);
    this.finishReason = choice.finish_reason ?? this.finishReason;
    for (const { number, segment } of choice.segments ?? []) {
      this.segments.set(number, segment);
      events.push({ type: "segment_ended", number, segment });
    }
    if (choice.tree) {
      const segments = choice.tree.segments.map((segment, number) => segment ?? this.segment(number));
      this.tokenTree = { ...choice.tree, segments };
    }
    return events;
  }

  /** The answer as a whole. */
  finish(): Extract<ForkJoinEvent, { type: "finished" }> {
    const { id, content, reasoning, finishReason, usage, tree, tokenTree } = this;
    const toolCalls = [...this.toolCalls.values()];
    return { type: "finished", id, content, reasoning, toolCalls, finishReason, usage, tree, tokenTree };
  }

  /** The segment of this number, which was sent before. */
  private segment(number: number): Segment {
    const segment = this.segments.get(number);
    if (segment === undefined) throw new StreamBroken(`expected segment ${number} of the tree: an event is missing`);
    return segment;
  }

  private takeText(
    text: string | null | undefined,
    isReasoning: boolean,
    chunk: Chunk,
    events: ForkJoinEvent[],
  ): void {
    if (!text) return;
    if (isReasoning) this.reasoning += text;
    else this.content += text;
    events.push({ type: "answer_delta", text, isReasoning, toolCalls: [], usage: chunk.usage ?? null });
  }

  private takeCalls(pieces: ToolCallPiece[], chunk: Chunk, events: ForkJoinEvent[]): void {
    if (pieces.length === 0) return;
    for (const piece of pieces) this.takeCall(piece);
    events.push({ type: "answer_delta", text: "", isReasoning: false, toolCalls: pieces, usage: chunk.usage ?? null });
  }

  /** Puts a call together, as OpenAI's clients do: by `index`, its arguments appended. */
  private takeCall({ index, id, type, function: said }: ToolCallPiece): void {
    const call = this.toolCalls.get(index) ?? { id: "", type: "function", function: { name: "", arguments: "" } };
    this.toolCalls.set(index, call);
    call.id = id ?? call.id;
    call.type = type ?? call.type;
    call.function.name = said?.name ?? call.function.name;
    call.function.arguments += said?.arguments ?? "";
  }

  private takeThreads(entries: ThreadEntry[], events: ForkJoinEvent[]): void {
    const announced = entries.filter((e) => this.threads[e.index] === undefined);
    for (const [parentId, threads] of groupBy(announced, (e) => e.parent_id ?? ROOT)) {
      events.push(this.fork(parentId, threads));
    }
    for (const entry of entries) {
      const thread = this.threads[entry.index];
      if (thread === undefined) continue;
      if (entry.content) {
        thread.content += entry.content;
        events.push({ type: "thread_delta", thread, text: entry.content });
      }
      if (entry.waits_for != null) events.push({ type: "thread_waits", thread, waitsFor: entry.waits_for.type });
      if (entry.finish_reason != null && thread.finishReason === null) this.end(thread, entry, events);
    }
  }

  private fork(parentId: string, entries: ThreadEntry[]): ForkJoinEvent {
    const siblings = this.byId.get(parentId)?.children ?? this.tree;
    const threads = entries.map((entry): Thread => {
      const { index, id = `${index}`, title = "" } = entry;
      return { index, id, parentId, title, content: "", finishReason: null, completionTokens: null, children: [] };
    });
    const fork = { parentId, threads, numOpen: threads.length };
    for (const thread of threads) {
      this.threads[thread.index] = thread;
      this.byId.set(thread.id, thread);
      this.forkOf.set(thread.index, fork);
      siblings.push(thread);
    }
    return { type: "forked", parentId, threads };
  }

  private end(thread: Thread, entry: ThreadEntry, events: ForkJoinEvent[]): void {
    const finishReason = entry.finish_reason ?? "stop";
    const completionTokens = entry.usage?.completion_tokens ?? null;
    thread.finishReason = finishReason;
    thread.completionTokens = completionTokens;
    events.push({ type: "thread_ended", thread, finishReason, completionTokens });
    const fork = this.forkOf.get(thread.index);
    if (fork === undefined) return;
    fork.numOpen -= 1;
    if (fork.numOpen === 0) events.push({ type: "joined", parentId: fork.parentId, threads: fork.threads });
  }
}

/**
 * Events of chunks from anywhere: of this client, or of a stream of the `openai` package.
 *
 * Throws `StreamBroken` if the chunks end before the answer has.
 */
export async function* eventsOf(chunks: AsyncIterable<Chunk>): AsyncGenerator<ForkJoinEvent> {
  const answer = new Assembler();
  for await (const chunk of chunks) yield* answer.take(chunk);
  const finished = answer.finish();
  if (finished.finishReason === null) {
    throw new StreamBroken("expected a finish_reason, got the end of the stream: the answer is cut; ask again");
  }
  yield finished;
}

function groupBy<T>(items: T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(keyOf(item));
    if (group === undefined) groups.set(keyOf(item), [item]);
    else group.push(item);
  }
  return groups;
}
