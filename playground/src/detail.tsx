/** One lane: its times and its text. */

import type { Run } from "./run";
import type { Lane } from "./trace";
import { ownText } from "./attribution";
import { count, endOf, nameOf, seconds, speed, stateOf, waitOf } from "./words";

interface Props {
  run: Run;
  lane: Lane;
  t: number;
  onClose: () => void;
}

export function Detail({ run, lane, t, onClose }: Props) {
  const isRoot = lane.parent === null;
  const text = isRoot ? ownText(run.trace, t) : lane.textAt(t);
  return (
    <section class={`detail d${Math.min(lane.depth, 4)}`} aria-label={`${nameOf(lane)} in detail`}>
      <header>
        <h3>
          <span class="number">{lane.number || "◆"}</span> {isRoot ? "The answer itself" : lane.title || nameOf(lane)}
        </h3>
        <Actions run={run} lane={lane} />
        <button type="button" class="quiet" onClick={onClose} aria-label="Close the detail">
          ✕
        </button>
      </header>
      <dl>
        {facts(run, lane, t).map(([name, value, title]) => (
          <div key={name} title={title}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      <pre tabIndex={0} aria-label={`Text of ${nameOf(lane)}`}>
        {text || "Nothing written yet."}
      </pre>
    </section>
  );
}

/** What can be done to a lane alone. */
function Actions({ run, lane }: { run: Run; lane: Lane }) {
  if (!run.isRunning || lane.parent === null || lane.endedAt !== null) return null;
  const isAsked = run.cancelling.has(lane.id);
  return (
    // Not disabled: it would lose the focus of the keyboard.
    <button type="button" aria-disabled={isAsked} onClick={() => void run.cancelThread(lane.id)}>
      {isAsked ? "Cancelling…" : "Cancel this thread"}
    </button>
  );
}

function facts(run: Run, lane: Lane, t: number): [string, string, string?][] {
  const running = lane.spentAt("running", t);
  const waiting = lane.spentAt("waiting", t);
  const parked = lane.spentAt("parked", t);
  const isRoot = lane.parent === null;
  const tokens = isRoot && lane.endedAt === null ? null : lane.tokensAt(t);
  const why = lane.waitsForAt(t);
  const state = lane.stateAt(t) === "ended" ? endOf(lane.reason) : why !== null ? waitOf(why) : [stateOf(lane, t), ""];
  const rows: [string, string, string?][] = [
    ["State", state[0] ?? "", state[1] ?? ""],
    ["Started", `at ${seconds(lane.startedAt)}`],
    ["Waited", seconds(waiting), "No token came: the lane waited for its start, or for its turn."],
    ["Ran", seconds(running)],
  ];
  if (parked > 0) rows.push(["Parked", seconds(parked), "Its own threads ran."]);
  if (lane.endedAt !== null && t >= lane.endedAt) rows.push(["Ended", `at ${seconds(lane.endedAt)}`]);
  if (tokens !== null) rows.push(["Tokens", `${tokens}`], ["Tokens/s", speed(tokens, running)]);
  const numThreads = lane.forks.reduce((sum, f) => sum + f.lanes.length, 0);
  if (numThreads > 0) rows.push(["Forked", `${count(lane.forks.length, "time")}, ${count(numThreads, "thread")}`]);
  if (isRoot && run.trace.firstAt !== null) rows.push(["First token", `at ${seconds(run.trace.firstAt)}`]);
  return rows;
}
