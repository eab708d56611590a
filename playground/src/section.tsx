import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

/** A section that opens when something in it is used. Only its reader closes it: never the field that has the focus. */
export function Section({ title, isUsed = false, children }: { title: string; isUsed?: boolean; children: ComponentChildren }) {
  const details = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    if (isUsed && details.current !== null) details.current.open = true;
  }, [isUsed]);
  return (
    <details ref={details}>
      <summary>{title}</summary>
      {children}
    </details>
  );
}
