/** The answers: lanes on one time axis, the view's controls, the lane in detail, and the texts. */

import { useEffect, useState } from "preact/hooks";
import { Answer } from "./answer";
import { Axis, scaleFor } from "./axis";
import { Detail } from "./detail";
import { useFrames } from "./frames";
import { Lanes } from "./lanes";
import { noticesOf, ofError } from "./notices";
import { forks } from "./recording";
import type { Run } from "./run";
import { Summary } from "./summary";
import { newsOf, seconds } from "./words";

/** The moment that is shown: null is now, or the end. */
interface View {
  t: number | null;
  /** Where a replay began: on the view's clock, and on the browser's. */
  replay: { from: number; startedAt: number } | null;
}

const LIVE: View = { t: null, replay: null };

export function Stage({ runs }: { runs: Run[] }) {
  const [view, setView] = useState<View>(LIVE);
  const [selected, setSelected] = useState<{ run: number; lane: number } | null>(null);
  const isRunning = runs.some((run) => run.isRunning);
  useFrames(isRunning || view.replay !== null);
  useEffect(() => {
    setView(LIVE);
    setSelected(null);
  }, [runs]);

  const end = Math.max(...runs.map((run) => run.now));
  const t = momentOf(view, end);
  // Texts grow ten times a second: to lay them out in each frame would cost more than all lanes.
  const tOfTexts = isRunning && view.t === null ? t - (t % 100) : t;
  useEffect(() => {
    if (view.replay !== null && t >= end) setView(LIVE);
  });
  const scale = scaleFor(end, isRunning);
  const shown = selected === null ? undefined : runs[selected.run];
  const lane = selected === null ? undefined : shown?.trace.lane(selected.lane);
  const isPair = runs.length > 1;
  return (
    <section class="stage" aria-label="Answer">
      {runs.map((run, i) => (
        <section key={i} class="run" aria-label={titleOf(run)}>
          {isPair && <h2>{titleOf(run)}</h2>}
          <Summary run={run} t={momentIn(run, t)} other={forks(run.recording.request) ? (runs[1 - i] ?? null) : null} />
          <Notices run={run} />
          <Axis scale={scale} t={view.t === null && view.replay === null ? null : t} />
          <Lanes
            trace={run.trace}
            t={momentIn(run, t)}
            scale={scale}
            label={`Lanes of ${titleOf(run).toLowerCase()}`}
            selected={selected?.run === i ? selected.lane : null}
            onSelect={(index) => setSelected(index === null ? null : { run: i, lane: index })}
          />
        </section>
      ))}
      <Controls view={view} setView={setView} t={t} end={end} isRunning={isRunning} />
      {shown !== undefined && lane !== undefined && (
        <Detail run={shown} lane={lane} t={momentIn(shown, tOfTexts)} onClose={() => setSelected(null)} />
      )}
      <div class={isPair ? "answers pair" : "answers"}>
        {runs.map((run, i) => (
          <div key={i}>
            <h2>{isPair ? titleOf(run) : "Answer"}</h2>
            <Answer
              trace={run.trace}
              t={momentIn(run, tOfTexts)}
              label={isPair ? `Text: ${titleOf(run).toLowerCase()}` : "Text of the answer"}
              selected={selected?.run === i ? selected.lane : null}
              onSelect={(index) => setSelected({ run: i, lane: index })}
            />
          </div>
        ))}
      </div>
      <Legend />
      <Announcer runs={runs} />
    </section>
  );
}

function titleOf(run: Run): string {
  return forks(run.recording.request) ? "Forked" : "In a row";
}

function momentOf(view: View, end: number): number {
  if (view.replay !== null) return Math.min(end, view.replay.from + performance.now() - view.replay.startedAt);
  return Math.min(view.t ?? end, end);
}

/** A run that is over stays at its end while the other goes on. */
function momentIn(run: Run, t: number): number {
  return Math.min(t, run.now);
}

interface ControlsProps {
  view: View;
  setView: (view: View) => void;
  t: number;
  end: number;
  isRunning: boolean;
}

function Controls({ view, setView, t, end, isRunning }: ControlsProps) {
  const isHeld = view.t !== null;
  const replay = (): void => {
    const from = t >= end ? 0 : t;
    setView({ t: null, replay: { from, startedAt: performance.now() } });
  };
  return (
    <div class="controls">
      <span class="clock">
        {view.replay !== null || (isRunning && !isHeld) ? (
          <button type="button" onClick={() => setView({ t, replay: null })}>
            Pause view
          </button>
        ) : isRunning ? (
          <button type="button" onClick={() => setView(LIVE)}>
            Go live
          </button>
        ) : (
          <button type="button" onClick={replay}>
            Replay
          </button>
        )}
        {/* It changes with each frame, and would be read aloud as often. */}
        <output aria-live="off">{seconds(t)}</output>
      </span>
      <input
        type="range"
        aria-label="Moment of the answer"
        aria-valuetext={seconds(t)}
        min={0}
        max={Math.max(1, Math.ceil(end))}
        step={1}
        value={t}
        onInput={(e) => {
          const at = Number(e.currentTarget.value);
          setView(at >= end && !isRunning ? LIVE : { t: at, replay: null });
        }}
      />
    </div>
  );
}

function Notices({ run }: { run: Run }) {
  const { retry } = run;
  return (
    <div aria-live="polite">
      {retry !== null && (
        <p class="notice warning">
          <b>{ofError(retry.error).title}.</b> Trying again in{" "}
          {/* A timer is not read aloud whenever it changes. */}
          <span role="timer">{Math.max(0, Math.ceil((retry.until - performance.now()) / 1000))} s</span> (try {retry.attempt + 1}).
        </p>
      )}
      {noticesOf(run).map(({ kind, title, text }) => (
        <p key={title} class={`notice ${kind}`} role={kind === "error" ? "alert" : undefined}>
          <b>{title}.</b> {text}
        </p>
      ))}
    </div>
  );
}

function Legend() {
  return (
    <ul class="legend" aria-label="How to read the lanes">
      <li><span class="span running d1" /> writes tokens</li>
      <li><span class="span waiting d1" /> waits: for its start, or its turn</li>
      <li><span class="span parked d0" /> parked: its threads run</li>
      <li><span class="mark critical" /> on the critical path</li>
      <li><span class="mark fork" /> fork</li>
      <li><span class="mark join" /> join</li>
    </ul>
  );
}

/** Tells a screen reader what happens, a sentence for each fork, join and end. */
function Announcer({ runs }: { runs: Run[] }) {
  const [run] = runs;
  return (
    <p class="visually-hidden" aria-live="polite">
      {run !== undefined && newsOf(run.trace, run.now)}
    </p>
  );
}
