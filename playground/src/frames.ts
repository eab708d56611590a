import { useEffect, useReducer } from "preact/hooks";

/** Renders again with each frame while `isOn`. */
export function useFrames(isOn: boolean): void {
  const [, render] = useReducer((n: number) => n + 1, 0);
  useEffect(() => {
    if (!isOn) return;
    let id = requestAnimationFrame(function frame() {
      render(undefined);
      id = requestAnimationFrame(frame);
    });
    return () => cancelAnimationFrame(id);
  }, [isOn]);
}
