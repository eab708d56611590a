/** The lanes of one answer, read like a trace viewer: one row a thread, time from left to right. */

import type { JSX } from "preact";
import type { Fork, Lane, Span, Trace } from "./trace";
import { nameOf, speed, stateOf, waitOf } from "./words";

/** So much text of a lane fits into its bar on any screen. */
const TAIL_CHARS = 160;
/** The tag that ends a thread says nothing about what it found. */
const CLOSING_TAG = /\s*(<\/[^<>\n]{1,30}>)?\s*$/;

interface Props {
  trace: Trace;
  t: number;
  scale: number;
  label: string;
  selected: number | null;
  onSelect: (index: number | null) => void;
}

export function Lanes({ trace, t, scale, label, selected, onSelect }: Props) {
  const rows = trace.rows();
  const critical = trace.criticalAt(t);
  const current = rows.some((lane) => lane.index === selected) ? selected : rows[0]?.index;
  return (
    <div class={`lanes${rows.length > 16 ? " dense" : ""}`}>
      <Connectors trace={trace} rows={rows} t={t} scale={scale} />
      <div role="tree" aria-label={label} onKeyDown={(e) => moveOn(e, rows, onSelect)}>
        {rows.map((lane) => (
          <Row
            key={lane.index}
            lane={lane}
            t={t}
            scale={scale}
            isCritical={critical.has(lane) && trace.threads.length > 0}
            isChosen={lane === trace.chosen && trace.endedAt !== null && t >= trace.endedAt}
            isSelected={lane.index === selected}
            isCurrent={lane.index === current}
            onSelect={onSelect}
          />
        ))}
      </div>
    </div>
  );
}

interface RowProps {
  lane: Lane;
  t: number;
  scale: number;
  isCritical: boolean;
  /** Whether a vote has chosen it. */
  isChosen: boolean;
  isSelected: boolean;
  /** The one row that the tab key reaches. */
  isCurrent: boolean;
  onSelect: (index: number | null) => void;
}

function Row({ lane, t, scale, isCritical, isChosen, isSelected, isCurrent, onSelect }: RowProps) {
  const state = lane.stateAt(t);
  const tokens = lane.parent === null && state !== "ended" ? null : lane.tokensAt(t);
  const outcome = state === "ended" ? endClass(lane.reason) : (state ?? "future");
  return (
    <div
      role="treeitem"
      aria-level={lane.depth + 1}
      aria-selected={isSelected}
      tabIndex={isCurrent ? 0 : -1}
      data-index={lane.index}
      class={`lane d${Math.min(lane.depth, 4)} ${outcome}${isCritical ? " critical" : ""}`}
      onClick={() => onSelect(isSelected ? null : lane.index)}
    >
      <span class="gutter" style={{ "--depth": lane.depth }}>
        <span class="name">
          <span class="visually-hidden">{lane.parent !== null && "Thread "}</span>
          <span class="number" aria-hidden={lane.parent === null}>
            {lane.number || "◆"}
          </span>{" "}
          <span class="title">{lane.parent === null ? nameOf(lane) : hasTitle(lane) && lane.title}</span>
          {isChosen && <span class="chosen"> chosen</span>}
          <span class="visually-hidden">, {stateOf(lane, t)}</span>
        </span>
        <span class="figures">{tokens === null || state === null ? "" : figures(lane, tokens, t)}</span>
      </span>
      <span class="track" aria-hidden="true">
        {state !== null && lane.spans.map((span, i) => bar(lane, span, i, t, scale))}
        {state !== null && <Text lane={lane} t={t} scale={scale} />}
        {state === "ended" && lane.endedAt !== null && lane.parent !== null && (
          <span class="end" style={{ left: percent(lane.endedAt, scale) }} title={stateOf(lane, t)} />
        )}
      </span>
    </div>
  );
}

function figures(lane: Lane, tokens: number, t: number): JSX.Element {
  return (
    <>
      <b>{tokens}</b> {tokens > 0 && speed(tokens, lane.spentAt("running", t))}
    </>
  );
}

function bar(lane: Lane, span: Span, i: number, t: number, scale: number): JSX.Element | null {
  if (span.from > t) return null;
  const isLast = i === lane.spans.length - 1;
  // The last span is still growing: the lane's state at `t` says into what.
  const to = isLast && lane.endedAt === null ? (span.kind === "running" ? span.to : t) : span.to;
  const until = Math.min(to, t);
  const style = { left: percent(span.from, scale), width: percent(until - span.from, scale) };
  const [words, sentence] = span.why === undefined ? [] : waitOf(span.why);
  return (
    <span key={i} class={`span ${span.kind}`} style={style} title={sentence}>
      {words !== undefined && <span class="why">{words}</span>}
    </span>
  );
}

/** The end of what the lane has written, in its bar. */
function Text({ lane, t, scale }: { lane: Lane; t: number; scale: number }) {
  if (lane.stateAt(t) === "parked") return null;
  const until = Math.min(t, lane.endedAt ?? t);
  // It stands where the lane writes: behind its threads, where there were any.
  const from = textStart(lane, t);
  if (from === null) return null;
  const style = { left: percent(from, scale), width: percent(until - from, scale) };
  const tail = lane.textAt(t).replace(CLOSING_TAG, "").slice(-TAIL_CHARS).replaceAll("\n", " ");
  return (
    <span class="text" style={style}>
      <span>{tail}</span>
    </span>
  );
}

function textStart(lane: Lane, t: number): number | null {
  const joined = lane.forks.findLast((f) => f.joinedAt !== null && f.joinedAt <= t)?.joinedAt ?? 0;
  return lane.spans.find((s) => s.kind === "running" && s.from >= joined)?.from ?? null;
}

/** Lines from a fork's parent down to its threads, and up again where they join. */
function Connectors({ trace, rows, t, scale }: { trace: Trace; rows: Lane[]; t: number; scale: number }) {
  const rowOf = new Map(rows.map((lane, i) => [lane, i + 0.5]));
  const lines: JSX.Element[] = [];
  const draw = (fork: Fork, at: number, kind: string): void => {
    const ys = fork.lanes.map((lane) => rowOf.get(lane) ?? 0);
    const top = rowOf.get(fork.parent) ?? 0;
    const x = (at / scale) * 1000;
    lines.push(
      <path
        key={`${kind}${fork.lanes[0]?.index}`}
        class={`${kind} d${Math.min(fork.parent.depth + 1, 4)}`}
        d={`M${x} ${top}V${Math.max(...ys)}`}
      />,
    );
  };
  for (const fork of trace.forks) {
    if (fork.at <= t) draw(fork, fork.at, "fork");
    if (fork.joinedAt !== null && fork.joinedAt <= t) draw(fork, fork.joinedAt, "join");
  }
  return (
    <svg class="connectors" viewBox={`0 0 1000 ${rows.length}`} preserveAspectRatio="none" aria-hidden="true">
      {lines}
    </svg>
  );
}

/** Threads of a vote are called by their numbers only. */
function hasTitle(lane: Lane): boolean {
  return lane.parent !== null && lane.title !== "" && lane.title !== lane.number;
}

function endClass(reason: string | null): string {
  if (reason === "stop" || reason === null || reason === "tool_calls") return "ended";
  return reason === "failed" ? "ended failed" : "ended cut";
}

function percent(ms: number, scale: number): string {
  return `${(Math.max(ms, 0) / scale) * 100}%`;
}

/** Arrow keys move the focus from lane to lane; Enter and Space open one, Escape closes it. */
function moveOn(event: KeyboardEvent, rows: Lane[], onSelect: (index: number | null) => void): void {
  const tree = event.currentTarget as HTMLElement;
  const items = [...tree.querySelectorAll<HTMLElement>("[role=treeitem]")];
  const at = items.indexOf(event.target as HTMLElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
  if (to !== undefined) {
    const next = Math.max(0, Math.min(items.length - 1, to));
    items[next]?.focus();
    onSelect(rows[next]?.index ?? null);
  } else if (event.key === "Enter" || event.key === " ") {
    onSelect(rows[at]?.index ?? null);
  } else if (event.key === "Escape") {
    onSelect(null);
  } else {
    return;
  }
  event.preventDefault();
}
