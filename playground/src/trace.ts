/** The lanes of an answer over time. Events only append, so any moment can be looked up. */

import type { Usage } from "vllm-forkjoin";
import { type Recording, ROOT_LANE, type Timed } from "./recording";

/** What a lane did for a while. `parked`: its threads run. `waiting`: no token came. */
export interface Span {
  kind: "running" | "waiting" | "parked";
  from: number;
  to: number;
  /** What the server says that it waits for. */
  why?: string;
}

/** A pause in a lane's tokens counts as waiting from so many milliseconds on. */
const PAUSE_MS = 400;

export class Lane {
  endedAt: number | null = null;
  reason: string | null = null;
  /** As the server counted them, known at the end. */
  tokens: number | null = null;
  text = "";
  readonly spans: Span[] = [];
  readonly forks: Fork[] = [];
  /** The time of each piece of text, and where the text ended then. */
  private readonly times: number[] = [];
  private readonly ends: number[] = [];

  constructor(
    readonly index: number,
    /** As the server knows it; "root" for the request. */
    readonly id: string,
    readonly title: string,
    readonly depth: number,
    readonly parent: Lane | null,
    readonly startedAt: number,
    /** Its number below its parent: "2", "2.1". */
    readonly number: string,
  ) {
    this.spans.push({ kind: "waiting", from: startedAt, to: startedAt });
  }

  write(text: string, t: number, isOwn: boolean): void {
    this.text += text;
    this.times.push(t);
    this.ends.push(this.text.length);
    if (isOwn) this.run(t);
  }

  /** The lane wrote something at `t`. */
  private run(t: number): void {
    const last = this.spans.at(-1);
    if (last?.kind === "running" && t - last.to <= PAUSE_MS) {
      last.to = t;
      return;
    }
    if (last?.kind === "running") this.spans.push({ kind: "waiting", from: last.to, to: t });
    else if (last !== undefined) last.to = t;
    this.spans.push({ kind: "running", from: t, to: t });
  }

  /** It waits for `why` from `t` on; for nothing: its next token comes. */
  wait(t: number, why: string): void {
    this.close(t);
    this.spans.push({ kind: "waiting", from: t, to: t, ...(why === "nothing" ? {} : { why }) });
  }

  park(t: number): void {
    this.close(t);
    this.spans.push({ kind: "parked", from: t, to: t });
  }

  unpark(t: number): void {
    this.close(t);
    this.spans.push({ kind: "waiting", from: t, to: t });
  }

  end(t: number, reason: string | null, tokens: number | null): void {
    if (this.endedAt !== null) return;
    this.close(t);
    this.endedAt = t;
    this.reason = reason;
    this.tokens = tokens;
  }

  private close(t: number): void {
    const last = this.spans.at(-1);
    if (last === undefined) return;
    if (last.kind === "running" && t - last.to > PAUSE_MS) {
      this.spans.push({ kind: "waiting", from: last.to, to: t });
    } else {
      last.to = t;
    }
  }

  /** The text at the time `t`. */
  textAt(t: number): string {
    return this.text.slice(0, this.ends[countUntil(this.times, t) - 1] ?? 0);
  }

  /** The tokens at the time `t`: each piece of a stream is one, but for the last word of the server. */
  tokensAt(t: number): number {
    if (this.endedAt !== null && t >= this.endedAt && this.tokens !== null) return this.tokens;
    return countUntil(this.times, t);
  }

  /** What the lane does at `t`; null before it starts. */
  stateAt(t: number): "running" | "waiting" | "parked" | "ended" | null {
    if (t < this.startedAt) return null;
    if (this.endedAt !== null && t >= this.endedAt) return "ended";
    const span = this.spans.findLast((s) => s.from <= t) ?? this.spans[0];
    if (span === undefined) return null;
    return span.kind === "running" && t - span.to > PAUSE_MS ? "waiting" : span.kind;
  }

  /** What the server says that it waits for at `t`; null where it does not say, or it does not wait. */
  waitsForAt(t: number): string | null {
    if (this.stateAt(t) !== "waiting") return null;
    return this.spans.findLast((s) => s.from <= t)?.why ?? null;
  }

  /** Milliseconds that it spent so until `t`. */
  spentAt(kind: Span["kind"], t: number): number {
    const until = Math.min(t, this.endedAt ?? t);
    const spans = this.spans.filter((s) => s.kind === kind && s.from < until);
    return spans.reduce((sum, s) => sum + Math.min(s === this.spans.at(-1) ? until : s.to, until) - s.from, 0);
  }
}

/** The threads that one lane started at one time. */
export interface Fork {
  at: number;
  joinedAt: number | null;
  parent: Lane;
  lanes: Lane[];
}

export class Trace {
  readonly root: Lane;
  /** All threads, as they were forked. */
  readonly threads: Lane[] = [];
  readonly forks: Fork[] = [];
  usage: Usage | null = null;
  finishReason: string | null = null;
  /** When and how it ended, in milliseconds since the request was sent. */
  endedAt: number | null = null;
  stopped: Extract<Timed, { type: "stopped" }> | null = null;
  /** Of the first token. */
  firstAt: number | null = null;
  private readonly usageTimes: number[] = [];
  private readonly usages: Usage[] = [];
  private parentTokens = 0;
  private readonly laneOf = new Map<number, Lane>();

  constructor(readonly recording: Pick<Recording, "parentWaits" | "trigger">) {
    this.root = new Lane(ROOT_LANE, "root", "answer", 0, null, 0, "");
    this.laneOf.set(ROOT_LANE, this.root);
  }

  static of(recording: Recording): Trace {
    const trace = new Trace(recording);
    for (const event of recording.events) trace.take(event);
    return trace;
  }

  lane(index: number): Lane | undefined {
    return this.laneOf.get(index);
  }

  take(event: Timed): void {
    const { t } = event;
    switch (event.type) {
      case "forked":
        this.fork(event.parent, event.threads, t);
        break;
      case "text":
        this.write(event, t);
        break;
      case "waits":
        this.lane(event.index)?.wait(t, event.for);
        break;
      case "ended":
        this.lane(event.index)?.end(t, event.reason, event.tokens);
        break;
      case "joined": {
        const first = event.threads[0];
        const fork = this.forks.find((f) => f.lanes.some((lane) => lane.index === first));
        if (fork === undefined) break;
        fork.joinedAt = t;
        if (this.recording.parentWaits) fork.parent.unpark(t);
        break;
      }
      case "finished":
        this.usage = event.usage ?? this.usage;
        this.finishReason = event.reason;
        this.end(t, event.reason);
        break;
      case "stopped":
        this.stopped = event;
        this.end(t, event.how);
    }
  }

  private end(t: number, reason: string | null): void {
    for (const lane of this.threads) lane.end(t, reason, null);
    const total = this.usage?.forkjoin?.total_tokens ?? this.usage?.completion_tokens;
    const inThreads = this.threads.reduce((sum, lane) => sum + (lane.tokens ?? 0), 0);
    this.root.end(t, reason, total === undefined ? null : total - inThreads);
    this.endedAt = t;
  }

  private fork(parentIndex: number, threads: { index: number; id: string; title: string }[], t: number): void {
    const parent = this.lane(parentIndex) ?? this.root;
    const numBefore = parent.forks.reduce((sum, fork) => sum + fork.lanes.length, 0);
    const prefix = parent === this.root ? "" : `${parent.number}.`;
    const lanes = threads.map(({ index, id, title }, i) => {
      const lane = new Lane(index, id, title, parent.depth + 1, parent, t, `${prefix}${numBefore + i + 1}`);
      this.threads.push(lane);
      this.laneOf.set(index, lane);
      return lane;
    });
    const fork = { at: t, joinedAt: null, parent, lanes };
    parent.forks.push(fork);
    this.forks.push(fork);
    if (this.recording.parentWaits) parent.park(t);
  }

  private write({ index, text, usage }: Extract<Timed, { type: "text" }>, t: number): void {
    this.firstAt ??= t;
    const lane = this.lane(index);
    if (lane === undefined) return;
    // While a parent waits, what the transcript gets is its threads' text.
    const isParked = this.recording.parentWaits && lane.forks.some((f) => f.joinedAt === null);
    lane.write(text, t, !isParked);
    if (index === ROOT_LANE && !isParked) this.parentTokens++;
    if (usage === undefined) return;
    this.usageTimes.push(t);
    this.usages.push(usage);
  }

  /** All lanes in the order in which they are drawn: each thread below whoever forked it. */
  rows(): Lane[] {
    const below = (lane: Lane): Lane[] => [lane, ...lane.forks.flatMap((f) => f.lanes.flatMap(below))];
    return below(this.root);
  }

  /** Whether anything of the answer has come. */
  get hasBegun(): boolean {
    return this.firstAt !== null || this.forks.length > 0;
  }

  /** The thread that a vote has chosen: the answer is its text. */
  get chosen(): Lane | null {
    const index = this.usage?.forkjoin?.vote?.index;
    return index === undefined ? null : (this.lane(index) ?? null);
  }

  /** The duration so far; `now` counts while the answer is being written. */
  durationAt(now: number): number {
    return this.endedAt ?? now;
  }

  /** The counts at `t`: the server's at the end, before that what has arrived. */
  countsAt(t: number): { total: number; critical: number; isFinal: boolean } {
    const final = this.usage?.forkjoin ?? null;
    if (this.endedAt !== null && t >= this.endedAt && this.stopped === null) {
      const total = final?.total_tokens ?? this.usage?.completion_tokens ?? this.root.tokensAt(t);
      return { total, critical: final?.critical_path_tokens ?? total, isFinal: true };
    }
    const usage = this.usages[countUntil(this.usageTimes, t) - 1];
    const own = this.ownTokensAt(t, usage);
    const inThreads = this.threads.reduce((sum, lane) => sum + lane.tokensAt(t), 0);
    return { total: own + inThreads, critical: own + this.longestAt(this.root, t), isFinal: false };
  }

  private ownTokensAt(t: number, usage: Usage | undefined): number {
    if (this.threads.length === 0) return usage?.completion_tokens ?? this.root.tokensAt(t);
    const { total_tokens, critical_path_tokens } = usage?.forkjoin ?? {};
    if (total_tokens === undefined || critical_path_tokens === undefined) return this.parentTokens;
    return Math.max(0, critical_path_tokens - this.longestAt(this.root, t));
  }

  private longestAt(lane: Lane, t: number): number {
    return lane.forks.reduce((sum, f) => sum + Math.max(0, ...f.lanes.map((l) => this.pathAt(l, t))), 0);
  }

  /** A thread's own tokens and, of each of its forks, the longest thread's. */
  private pathAt(lane: Lane, t: number): number {
    return lane.tokensAt(t) + this.longestAt(lane, t);
  }

  /** The lanes that decide how long the answer takes: of each fork the longest thread. */
  criticalAt(t: number): Set<Lane> {
    const path = new Set<Lane>([this.root]);
    const walk = (lane: Lane): void => {
      for (const fork of lane.forks) {
        const longest = fork.lanes.reduce((a, b) => (this.pathAt(b, t) > this.pathAt(a, t) ? b : a));
        path.add(longest);
        walk(longest);
      }
    };
    walk(this.root);
    return path;
  }
}

/** How many of the sorted `times` are at most `t`. */
function countUntil(times: number[], t: number): number {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((times[middle] ?? Infinity) <= t) low = middle + 1;
    else high = middle;
  }
  return low;
}
