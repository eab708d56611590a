/** What forking gave: the critical path against all tokens, and the time that was measured. */

import type { Run } from "./run";
import { count, seconds, speed, times } from "./words";

export function Summary({ run, t, other }: { run: Run; t: number; other: Run | null }) {
  const { trace } = run;
  const { total, critical, isFinal } = trace.countsAt(t);
  const ratio = critical > 0 ? total / critical : 1;
  const numThreads = trace.threads.filter((lane) => lane.startedAt <= t).length;
  const elapsed = Math.min(t, trace.durationAt(t));
  const about = isFinal ? "" : "About: the server counts at the end.";
  return (
    <div class="summary">
      <Figure name="Tokens" value={total.toLocaleString("en")} title={about || "All generated tokens, each once"} />
      <Figure
        name="Critical path"
        value={critical.toLocaleString("en")}
        title={about || "Decoding steps one behind another: the answer's own tokens and the longest thread's of each fork"}
      />
      <Figure
        name="Fewer steps"
        value={numThreads > 0 ? times(ratio) : "–"}
        title="Tokens divided by the critical path: the speed-up if a step takes as long for many threads as for one"
        isMain={numThreads > 0}
      />
      <Figure name="Threads" value={`${numThreads}`} />
      <Figure name="Time" value={seconds(elapsed)} title={trace.firstAt === null ? "" : `First token at ${seconds(trace.firstAt)}`} />
      <Figure name="Tokens/s" value={speed(total, elapsed - (trace.firstAt ?? 0)).replace("/s", "")} title="Behind the first token, all threads together" />
      <div class="path" role="img" aria-label={`${critical} of ${count(total, "token")} lie on the critical path`}>
        <span class="whole" />
        <span class="share" style={{ width: `${total > 0 ? (critical / total) * 100 : 0}%` }} />
      </div>
      {other !== null && <Faster run={run} other={other} />}
    </div>
  );
}

function Figure({ name, value, title = "", isMain = false }: { name: string; value: string; title?: string; isMain?: boolean }) {
  return (
    <div class={isMain ? "figure main" : "figure"} title={title}>
      <span class="value">{value}</span>
      <span class="name">{name}</span>
    </div>
  );
}

/** How much sooner this answer ended than the other, once both are over. */
function Faster({ run, other }: { run: Run; other: Run }) {
  const [mine, theirs] = [run.trace, other.trace];
  if (mine.endedAt === null || theirs.endedAt === null || mine.stopped !== null || theirs.stopped !== null) return null;
  const ratio = theirs.endedAt / mine.endedAt;
  return (
    <p class="faster">
      Ended <b>{times(ratio >= 1 ? ratio : 1 / ratio)}</b> {ratio >= 1 ? "sooner" : "later"} than in a row (
      {seconds(mine.endedAt)} against {seconds(theirs.endedAt)}), while both shared the machine.
    </p>
  );
}
