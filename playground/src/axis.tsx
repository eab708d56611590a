/** The time axis that all lanes share. */

import { seconds } from "./words";

/** The width of the axis in milliseconds: while an answer runs it grows in steps, so that bars don't creep. */
export function scaleFor(durationMs: number, isRunning: boolean): number {
  if (!isRunning) return Math.max(durationMs * 1.01, 1);
  let scale = 1000;
  while (scale < durationMs * 1.05) scale *= 1.5;
  return scale;
}

function tickStep(scale: number): number {
  const rough = scale / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  return (([1, 2, 5].find((n) => n * power >= rough) ?? 10) as number) * power;
}

export function Axis({ scale, t }: { scale: number; t: number | null }) {
  const step = tickStep(scale);
  const ticks = Array.from({ length: Math.floor(scale / step) + 1 }, (_, i) => i * step);
  const label = (ms: number): string => (step < 1000 ? `${+(ms / 1000).toFixed(2)}` : `${ms / 1000}`);
  return (
    <div class="axis" aria-hidden="true">
      <div class="track">
        {ticks.map((ms) => (
          <span key={ms} class="tick" style={{ left: `${(ms / scale) * 100}%` }}>
            {label(ms)}
            {ms === 0 ? " s" : ""}
          </span>
        ))}
        {t !== null && (
          <span class="cursor" style={{ left: `${(t / scale) * 100}%` }} title={seconds(t)} />
        )}
      </div>
    </div>
  );
}
