/** The transcript as a stock client gets it, coloured by the lane that wrote it. */

import { useEffect, useRef } from "preact/hooks";
import { attribute } from "./attribution";
import type { Trace } from "./trace";
import { emptinessOf, nameOf } from "./words";

interface Props {
  trace: Trace;
  t: number;
  label: string;
  selected: number | null;
  onSelect: (index: number) => void;
}

export function Answer({ trace, t, label, selected, onSelect }: Props) {
  const transcript = trace.root.textAt(t);
  const box = useRef<HTMLDivElement>(null);
  const sticks = useRef(true);
  useEffect(() => {
    // Follows the text, unless its reader has scrolled up.
    if (sticks.current && box.current !== null) box.current.scrollTop = box.current.scrollHeight;
  }, [transcript.length]);
  return (
    <div
      class="answer"
      ref={box}
      tabIndex={0}
      role="region"
      aria-label={label}
      onScroll={(e) => {
        const { scrollTop, scrollHeight, clientHeight } = e.currentTarget;
        sticks.current = scrollHeight - scrollTop - clientHeight < 40;
      }}
    >
      {transcript === "" && <p class="empty">{emptinessOf(trace, t)}</p>}
      {attribute(trace, transcript, t).map(({ lane, text }, i) =>
        lane.parent === null ? (
          <span key={i}>{tagged(text)}</span>
        ) : (
          <span
            key={i}
            class={`piece d${Math.min(lane.depth, 4)}${lane.index === selected ? " selected" : ""}`}
            title={`${nameOf(lane)}: ${lane.title}`}
            onClick={() => onSelect(lane.index)}
          >
            {tagged(text)}
          </span>
        ),
      )}
    </div>
  );
}

/** Control tokens in grey: they are the dialect's, not the reader's. */
function tagged(text: string) {
  return text.split(/(<\/?[A-Za-z][^<>\n]{0,30}>)/).map((part, i) => (i % 2 === 1 ? <span key={i} class="tag">{part}</span> : part));
}
