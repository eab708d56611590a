/** What `GET /v1/forkjoin/families` answers, and how the page says it. */

export type State = "waiting" | "prefill" | "decoding" | "forked" | "joining";

export interface Family {
  /** As the answer's `id`; null: of another API key. */
  request_id: string | null;
  age_s: number;
  state: State;
  /** Itself or its threads, the most frequent first. */
  waits_for: string[];
  threads: Record<"running" | "waiting" | "parked" | "ended", number>;
  total_tokens: number;
  critical_path_tokens: number;
  kv_blocks: number;
  /** Null: admission has not let it in, or has nothing to do with it. */
  peak_kv_blocks: number | null;
  expected_kv_blocks: number | null;
}

/** An answer whose KV is kept for requests that continue it. */
export interface KeptAnswer {
  /** As the answer's `id`; null: of another API key. */
  request_id: string | null;
  tokens: number;
  kv_blocks: number;
  expires_in_s: number;
  num_continued: number;
}

export interface Engine {
  engine: number;
  kv_blocks: { total: number; free: number; tokens_per_block: number };
  waiting: { requests: number; threads: number; for_room: number };
  expected: { tokens: number; threads: number; forking_share: number };
  num_families: number;
  num_left_out: number;
  families: Family[];
  /** Blocks count once; the answers are those that end first. */
  kept: { kv_blocks: number; max_kv_blocks: number; num_answers: number; answers: KeptAnswer[] };
}

export function parseFamilies(text: string): Engine[] {
  return (JSON.parse(text) as { engines: Engine[] }).engines;
}

/** Threads by their state: "2 running, 1 ended". */
export function threadsOf({ threads }: Family): string {
  const some = Object.entries(threads).filter(([, num]) => num > 0);
  return some.map(([state, num]) => `${num} ${state}`).join(", ") || "–";
}

/** What it waits for, itself or its threads: "wave, turn". */
export function waitsOf({ waits_for }: Family): string {
  return waits_for.join(", ") || "–";
}

/** What admission expects of the next request. */
export function expectationOf({ expected }: Engine): string {
  const share = Math.round(expected.forking_share * 100);
  return `${Math.round(expected.tokens)} tokens; ${share} % fork, the widest fork into ${expected.threads.toFixed(1)} threads`;
}

/** What kept answers hold, and may: "2 answers, 12 of 250 KV blocks". */
export function keptOf({ kept }: Engine): string {
  const { num_answers: num, kv_blocks: blocks, max_kv_blocks: most } = kept;
  return `${num} ${num === 1 ? "answer" : "answers"}, ${blocks} of ${most} KV blocks`;
}

export function age(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
