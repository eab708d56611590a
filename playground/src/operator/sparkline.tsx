/** One figure over the last minutes. */

interface Props {
  name: string;
  title: string;
  values: (number | null)[];
  format: (value: number) => string;
  /** The top of the scale where it is known; else the largest value. */
  top?: number;
}

const POINTS = 150;

export function Sparkline({ name, title, values, format, top }: Props) {
  const shown = values.slice(-POINTS);
  const last = shown.at(-1) ?? null;
  const high = top ?? Math.max(1e-9, ...shown.map((v) => v ?? 0));
  const x = (i: number): number => ((POINTS - shown.length + i) / (POINTS - 1)) * 100;
  const points = shown.map((v, i) => (v === null ? null : `${x(i).toFixed(2)},${(30 - (v / high) * 28).toFixed(2)}`));
  const line = points.filter((p) => p !== null).join(" ");
  return (
    <figure class="spark" title={title}>
      <figcaption>
        <span class="name">{name}</span>
        <span class="value">{last === null ? "–" : format(last)}</span>
      </figcaption>
      <svg viewBox="0 0 100 32" preserveAspectRatio="none" aria-hidden="true">
        <path class="base" d="M0 30.5H100" />
        {line !== "" && <polyline points={line} />}
      </svg>
      <span class="range">
        {title}
        {shown.some((v) => v !== null) && top === undefined && <> Up to {format(high)} in view.</>}
      </span>
    </figure>
  );
}
