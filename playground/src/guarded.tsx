import type { ComponentChildren } from "preact";
import { useErrorBoundary } from "preact/hooks";

/** Shows `children`. Where they can't be drawn, it shows nothing and tells `onFault` why; the page around them lives on. */
export function Guarded({ onFault, children }: { onFault: (error: unknown) => void; children: ComponentChildren }) {
  const [fault] = useErrorBoundary(onFault);
  return fault === undefined ? <>{children}</> : null;
}
