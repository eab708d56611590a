/** An answer as it came: each event with its time. What is shown, saved and opened again is this. */

import type { ForkJoinEvent, ForkJoinOptions, ChatRequest, SegmentEnded, ToolCallPiece, Usage, Wait } from "vllm-forkjoin";

/** The index of the request's own lane; threads count from 0. */
export const ROOT_LANE = -1;

/** `t`: milliseconds since the request was sent. */
export type Timed = { t: number } & (
  | { type: "forked"; parent: number; threads: { index: number; id: string; title: string }[] }
  | { type: "text"; index: number; text: string; usage?: Usage }
  /** Of the answer: it has not begun. */
  | { type: "waits"; index: number; for: Wait }
  | { type: "ended"; index: number; reason: string; tokens: number | null }
  | { type: "joined"; parent: number; threads: number[] }
  | { type: "finished"; reason: string | null; usage: Usage | null }
  | { type: "stopped"; how: Stop; message: string }
);

/** How an answer ended that did not finish. */
export type Stop = "cancelled" | "interrupted" | "failed";

export interface Recording {
  format: "forkjoin-recording";
  version: 1;
  request: ChatRequest;
  /** When the request was sent, as an ISO date. */
  startedAt: string;
  /** Whether a parent waits for its threads; the dialect says so. */
  parentWaits: boolean;
  /** The token that forks, if the dialect has one. */
  trigger: string | null;
  events: Timed[];
}

/** Turns the client's events into timed ones, which are plain JSON. */
export class Recorder {
  private readonly indexOf = new Map<string, number>();
  /** Whether the answer has any. */
  private hasText = false;

  record(event: Exclude<ForkJoinEvent, SegmentEnded>, t: number): Timed {
    switch (event.type) {
      case "forked": {
        for (const thread of event.threads) this.indexOf.set(thread.id, thread.index);
        const threads = event.threads.map(({ index, id, title }) => ({ index, id, title }));
        return { t, type: "forked", parent: this.lane(event.parentId), threads };
      }
      case "thread_delta":
        return { t, type: "text", index: event.thread.index, text: event.text };
      case "answer_delta": {
        const usage = event.usage === null ? {} : { usage: event.usage };
        const calls = event.toolCalls.map(written).join("");
        const text = event.text + (this.hasText ? calls : calls.trimStart());
        this.hasText ||= text !== "";
        return { t, type: "text", index: ROOT_LANE, text, ...usage };
      }
      case "thread_waits":
        return { t, type: "waits", index: event.thread.index, for: event.waitsFor };
      case "thread_ended": {
        const { thread, finishReason: reason, completionTokens: tokens } = event;
        return { t, type: "ended", index: thread.index, reason, tokens };
      }
      case "joined": {
        const threads = event.threads.map((thread) => thread.index);
        return { t, type: "joined", parent: this.lane(event.parentId), threads };
      }
      case "finished":
        return { t, type: "finished", reason: event.finishReason, usage: event.usage };
    }
  }

  private lane(id: string): number {
    return this.indexOf.get(id) ?? ROOT_LANE;
  }
}

/** A piece of a tool call as the page shows it: a line for each call, with the arguments as the model wrote them. */
function written({ function: said }: ToolCallPiece): string {
  const name = said?.name ? `\nTool call ${said.name}: ` : "";
  return name + (said?.arguments ?? "");
}

/** Whether a request lets the model fork. */
export function forks(request: { forkjoin?: ForkJoinOptions }): boolean {
  return request.forkjoin?.enabled !== false;
}
