/** The events of one answer, in the order in which the server sends them. */

import type { Segment, ThreadFinishReason, TokenTree, ToolCall, ToolCallPiece, Usage, Wait } from "./wire.js";

/** A thread as it is at the moment: `content` grows until `finishReason` is set. */
export interface Thread {
  readonly index: number;
  readonly id: string;
  /** The thread that forked; `"root"` is the request itself. */
  readonly parentId: string;
  readonly title: string;
  content: string;
  finishReason: ThreadFinishReason | null;
  /** The number of generated tokens, known when the thread has ended. */
  completionTokens: number | null;
  readonly children: Thread[];
}

/** A parent started threads. All threads of a fork come in one event. */
export interface Forked {
  type: "forked";
  parentId: string;
  threads: Thread[];
}

/** A thread wrote `text`. */
export interface ThreadDelta {
  type: "thread_delta";
  thread: Thread;
  text: string;
}

/** A thread does not run, and why; `"nothing"`: it runs again. */
export interface ThreadWaits {
  type: "thread_waits";
  thread: Thread;
  waitsFor: Wait;
}

export interface ThreadEnded {
  type: "thread_ended";
  thread: Thread;
  finishReason: ThreadFinishReason;
  completionTokens: number | null;
}

/** All threads of a fork have ended. The parent goes on, unless its dialect never waited. */
export interface Joined {
  type: "joined";
  parentId: string;
  threads: Thread[];
}

/** A segment of the answer's tree ended, with `stream_segments`: nothing changes it any more. */
export interface SegmentEnded {
  type: "segment_ended";
  /** Its number in the tree. */
  number: number;
  segment: Segment;
}

/** The next piece of the transcript: what a client that knows no threads sees. */
export interface AnswerDelta {
  type: "answer_delta";
  /** Empty where the piece is one of tool calls. */
  text: string;
  /** Whether a reasoning parser put the text into the reasoning field. */
  isReasoning: boolean;
  /** Pieces of tool calls, in the shape of OpenAI's `delta.tool_calls`; empty where the piece is text. */
  toolCalls: ToolCallPiece[];
  /** The usage so far, with `stream_options.continuous_usage_stats`. */
  usage: Usage | null;
}

/** The answer is complete. */
export interface Finished {
  type: "finished";
  /** What `release` and `continues` take; null if the stream had no chunk with an id. */
  id: string | null;
  content: string;
  reasoning: string;
  /** The whole tool calls, in the shape of OpenAI's `message.tool_calls`. */
  toolCalls: ToolCall[];
  finishReason: string | null;
  usage: Usage | null;
  /** The threads that the request forked, each with its own as `children`. */
  tree: Thread[];
  /** All tokens that were computed for the answer, with `return_tree`. */
  tokenTree: TokenTree | null;
}

export type ForkJoinEvent =
  | Forked
  | ThreadDelta
  | ThreadWaits
  | ThreadEnded
  | Joined
  | SegmentEnded
  | AnswerDelta
  | Finished;
