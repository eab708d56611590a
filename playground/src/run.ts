/** One request, running or over, and the trace of its answer. */

import { ApiError, type ChatRequest, type ForkJoin, type Retry } from "vllm-forkjoin";
import { freshName, watchBeginning } from "./beginning";
import { type Recording, Recorder, ROOT_LANE, type Stop, type Timed } from "./recording";
import type { Dialect } from "./served";
import { Trace } from "./trace";

export class Run {
  readonly trace: Trace;
  /** The wait for another try, while the server is too busy or away. */
  retry: (Retry & { until: number }) | null = null;
  error: unknown = null;
  /** The threads that the server was asked to cancel, by their ids. */
  readonly cancelling = new Set<string>();
  /** Why the last of them was not cancelled; null: it was, or had ended by itself. */
  threadError: unknown = null;
  private readonly abort = new AbortController();
  /** Aborted when the answer begins, or ends without a beginning. */
  private readonly begun = new AbortController();
  /** `performance.now()` of the request. */
  private readonly sentAt: number;
  /** Who makes the answer; null where it was opened from a file. */
  private api: ForkJoin | null = null;

  constructor(readonly recording: Recording, private readonly onChange: () => void, sentAt = performance.now()) {
    this.trace = Trace.of(recording);
    this.sentAt = sentAt;
  }

  /** Ask `api`; `onChange` is called after each event. */
  static start(api: ForkJoin, request: ChatRequest, dialect: Dialect | null, onChange: () => void): Run {
    const run = new Run(
      {
        format: "forkjoin-recording",
        version: 1,
        request,
        startedAt: new Date().toISOString(),
        parentWaits: dialect?.parent_waits ?? true,
        trigger: dialect?.trigger ?? null,
        events: [],
      },
      onChange,
    );
    run.api = api;
    void run.read(api);
    return run;
  }

  get isRunning(): boolean {
    return this.trace.endedAt === null;
  }

  /** The time on the trace's clock: its end, once it is over. */
  get now(): number {
    return this.trace.durationAt(performance.now() - this.sentAt);
  }

  /** Closes the connection: the server stops the request with all its threads. */
  cancel(): void {
    this.stop("cancelled", "you cancelled it");
    this.abort.abort();
  }

  /** Note that the page goes away while the answer is written. */
  interrupt(): void {
    this.stop("interrupted", "the page was reloaded or closed");
  }

  /** Stops one thread while the others go on; the stream tells of its end. */
  async cancelThread(threadId: string): Promise<void> {
    if (this.api === null || this.cancelling.has(threadId)) return;
    this.cancelling.add(threadId);
    this.threadError = null;
    this.onChange();
    try {
      await this.api.cancelThread(threadId);
    } catch (error) {
      this.cancelling.delete(threadId);
      // One that ended while the server was asked: its lane says how.
      const hasEnded = error instanceof ApiError && error.status === 409;
      if (!hasEnded && this.isRunning) this.threadError = error;
    }
    this.onChange();
  }

  private async read(api: ForkJoin): Promise<void> {
    const recorder = new Recorder();
    const asked = { ...this.recording.request.stream_options, continuous_usage_stats: true };
    const name = freshName();
    void watchBeginning(api, name, this.begun.signal, (wait) =>
      this.take({ t: this.now, type: "waits", index: ROOT_LANE, for: wait }),
    );
    try {
      const request = { ...this.recording.request, request_id: name, stream_options: asked };
      const onRetry = (retry: Retry): void => {
        this.retry = { ...retry, until: performance.now() + retry.delayS * 1000 };
        this.onChange();
      };
      for await (const event of api.stream(request, { signal: this.abort.signal, onRetry })) {
        this.retry = null;
        this.begun.abort();
        if (event.type === "segment_ended") continue; // the page asks for no trees
        this.take(recorder.record(event, performance.now() - this.sentAt));
      }
    } catch (error) {
      this.error = error;
      this.stop("failed", error instanceof Error ? error.message : String(error));
    }
  }

  private stop(how: Stop, message: string): void {
    this.retry = null;
    this.begun.abort();
    if (this.isRunning) this.take({ t: this.now, type: "stopped", how, message });
  }

  private take(event: Timed): void {
    if (!this.isRunning) return;
    const rounded = { ...event, t: Math.round(event.t * 10) / 10 };
    this.recording.events.push(rounded);
    this.trace.take(rounded);
    this.onChange();
  }
}
