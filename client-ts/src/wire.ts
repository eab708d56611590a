/** The wire format: what the server streams, as far as this client reads it. */

/** How many threads an answer had, and how many decoding steps it took. */
export interface ForkJoinUsage {
  num_threads: number;
  /** The parent's own tokens and, of each fork, the longest thread's. */
  critical_path_tokens: number;
  /** All generated tokens, each once. */
  total_tokens: number;
  /** Of `total_tokens`, those that the tree of `continues_tree` has: they were not generated again. */
  given_tokens?: number;
  vote?: Vote;
  /** Only with `keep`. */
  kept?: KeptUsage;
  /** What the request found of the kept answer that it goes on from. The list may grow, so keep a default case. */
  continued?: "kept" | "expired" | "released" | "pressure" | "reset" | (string & {});
}

/** Whether an answer is kept. */
export interface KeptUsage {
  /** Tokens of the answer and its prompt whose KV is kept. */
  tokens: number;
  /** Seconds for which the request asked. */
  seconds: number;
  /** Why the answer is not kept; null: it is. The list may grow, so keep a default case. */
  refused: "budget" | "share" | "not_cached" | (string & {}) | null;
}

/** The outcome of a request with `best_of`. */
export interface Vote {
  /** The index of the chosen thread. */
  index: number;
  result: string | null;
  cut: number[];
  not_started: number[];
  pruned: number[];
  cancelled: number[];
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  forkjoin?: ForkJoinUsage;
}

/** Why a thread ended; the list may grow, so keep a default case. */
export type ThreadFinishReason =
  | "stop"
  | "length"
  | "cut"
  | "not_started"
  | "pruned"
  | "cancelled"
  | (string & {});

/**
 * Why a thread does not run: a later wave of its vote starts it; what it depends on has not been joined; others run
 * first; no slot or no KV block is free; its grammar is compiled. `nothing`: it runs. The list may grow, so keep a default case.
 */
export type Wait = "wave" | "dependencies" | "turn" | "room" | "grammar" | "nothing" | (string & {});

/** One entry of `delta.threads`: `index` is in every entry, `content` comes in pieces, `waits_for` when it changes, the rest once. */
export interface ThreadEntry {
  index: number;
  id?: string;
  parent_id?: string;
  title?: string;
  content?: string;
  finish_reason?: ThreadFinishReason;
  usage?: { completion_tokens: number };
  waits_for?: { type: Wait };
}

/** A piece of a tool call: `index` says of which; `id`, `type` and the name come once, the arguments in pieces. */
export interface ToolCallPiece {
  index: number;
  id?: string | null;
  type?: string | null;
  function?: { name?: string | null; arguments?: string | null } | null;
}

/** A tool call, in the shape of OpenAI's `message.tool_calls`. */
export interface ToolCall {
  id: string;
  type: string;
  /** `arguments` is JSON, as the model wrote it. */
  function: { name: string; arguments: string };
}

export interface Delta {
  role?: string;
  content?: string | null;
  /** vLLM's name for the text before `</think>`; `reasoning_content` in older versions. */
  reasoning?: string | null;
  reasoning_content?: string | null;
  tool_calls?: ToolCallPiece[] | null;
  threads?: ThreadEntry[];
}

/** A thread whose KV a stitched join gave to a segment. */
export interface JoinedThread {
  segment: number;
  num_tokens: number;
  num_skipped: number;
}

/** Tokens that follow each other in one context; docs/http-api.md explains each field. */
export interface Segment {
  /** The index of its thread; -1: the request itself. */
  thread: number;
  token_ids: number[];
  /** The first of them, which were given; the model sampled the others. */
  num_injected: number;
  position: number;
  parent: number | null;
  fork_offset: number;
  forked_by: number | null;
  joined: JoinedThread[];
  logprobs: (number | null)[] | null;
  /** By token id. */
  top_logprobs: Record<string, number>[] | null;
  /** Up to 63 bits, of which `JSON.parse` keeps 53: take it from the JSON text where it must be exact. */
  seed: number | null;
  finish_reason: string | null;
  title: string;
  weight_version: string | null;
  has_old_kv: boolean | null;
}

/** All tokens that were computed for an answer: only with `return_tree`. */
export interface TokenTree {
  /** Each after those that it sees. */
  segments: Segment[];
  /** The transcript. */
  answer_ids: number[];
  /** The thread that a vote made the answer. */
  voted: number | null;
}

/** A `chat.completion.chunk`. Chunks of the `openai` package fit, too. */
export interface Chunk {
  id?: string;
  model?: string;
  choices: {
    index: number;
    delta: Delta;
    finish_reason?: string | null;
    /** Of the tree, as they end: with `stream_segments`. */
    segments?: { number: number; segment: Segment }[];
    /** With `stream_segments`, null stands in the place of each segment that was sent. */
    tree?: Omit<TokenTree, "segments"> & { segments: (Segment | null)[] };
  }[];
  usage?: Usage | null;
}

/** A thread that the request itself defines. */
export interface Branch {
  title?: string;
  text?: string;
  response_format?: Record<string, unknown>;
}

/** The request's field `forkjoin`; docs/http-api.md explains each key. */
export interface ForkJoinOptions {
  enabled?: boolean;
  include_threads?: boolean;
  return_tree?: boolean;
  /** For a stream with `return_tree`: segments are sent as they end, in chunks of their own. */
  stream_segments?: boolean;
  max_threads_per_fork?: number;
  max_forks?: number;
  max_tokens_per_thread?: number;
  max_total_tokens?: number;
  /** So many threads at a time; the others wait. */
  max_threads_running?: number;
  /** Threads of each round of a dialect of rounds. */
  rounds?: number[];
  structured?: "answer";
  branches?: Branch[];
  closing?: string;
  best_of?: number;
  vote?: string;
  confidence?: number;
  prune?: "confidence" | "agreement" | "memory" | "own";
  wait_for_all?: boolean;
  /** Seconds for which the KV of the answer is kept after its end. */
  keep?: number;
  /** Id of a kept answer that the request goes on from. */
  continues?: string;
  /** Tree of an answer that was cut off, as `return_tree` gave it, from which the request goes on. */
  continues_tree?: unknown;
  /** Requests of one group share a prompt: one engine prefills it once. */
  group_id?: string;
}

/** A message of a conversation. Its other fields, such as `tool_calls` and `tool_call_id`, go to the server as they are. */
export interface Message {
  role: string;
  content?: unknown;
  [field: string]: unknown;
}

/** The body of a chat completion. Fields that are not listed go to the server as they are. */
export interface ChatRequest {
  model: string;
  messages: Message[];
  forkjoin?: ForkJoinOptions;
  temperature?: number;
  top_p?: number;
  max_tokens?: number;
  seed?: number;
  /** This client reads one answer a request. */
  n?: 1;
  stream_options?: Record<string, unknown>;
  [field: string]: unknown;
}
