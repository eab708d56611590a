/** The server's metrics: read from Prometheus' text, and what changed between two readings. */

export interface Reading {
  /** `performance.now()`. */
  at: number;
  /** Each series by its name with its labels, as the text has it. */
  series: Map<string, number>;
}

/** Reads the text of `/metrics`; comments and what is no number are skipped. */
export function parse(text: string, at: number): Reading {
  const series = new Map<string, number>();
  for (const line of text.split("\n")) {
    const space = line.lastIndexOf(" ");
    if (line.startsWith("#") || space < 0) continue;
    const value = Number(line.slice(space + 1).replace("+Inf", "Infinity"));
    if (!Number.isNaN(value)) series.set(line.slice(0, space), value);
  }
  return { at, series };
}

/** The sum of a metric over its labels; null where the server has none. */
export function sum({ series }: Reading, name: string): number | null {
  let total: number | null = null;
  for (const [key, value] of series) if (isOf(key, name)) total = (total ?? 0) + value;
  return total;
}

/** The greatest value of a metric over its labels, such as that of the fullest engine; null where the server has none. */
export function greatest({ series }: Reading, name: string): number | null {
  let most: number | null = null;
  for (const [key, value] of series) if (isOf(key, name)) most = Math.max(most ?? -Infinity, value);
  return most;
}

/** How much a counter grew a second between two readings; a server that started again counts from 0. */
export function rate(before: Reading, after: Reading, name: string): number | null {
  const [a, b] = [sum(before, name), sum(after, name)];
  if (b === null || after.at <= before.at) return null;
  return Math.max(0, b >= (a ?? 0) ? b - (a ?? 0) : b) / ((after.at - before.at) / 1000);
}

/** A metric by the values of one or more of its labels, the largest first. */
export function byLabel({ series }: Reading, name: string, labels: string[]): [string, number][] {
  const groups = new Map<string, number>();
  for (const [key, value] of series) {
    if (!isOf(key, name)) continue;
    const group = labels.map((label) => labelOf(key, label)).join(", ");
    groups.set(group, (groups.get(group) ?? 0) + value);
  }
  return [...groups].filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
}

/**
 * A quantile of what a histogram took in between two readings, in its unit; null where it took in nothing.
 * A server that started again counts from 0.
 */
export function quantile(before: Reading, after: Reading, name: string, share: number): number | null {
  const buckets = new Map<number, number>();
  const isNew = (sum(after, `${name}_count`) ?? 0) < (sum(before, `${name}_count`) ?? 0);
  for (const [key, value] of after.series) {
    if (!isOf(key, `${name}_bucket`)) continue;
    const bound = Number(labelOf(key, "le").replace("+Inf", "Infinity"));
    buckets.set(bound, (buckets.get(bound) ?? 0) + value - (isNew ? 0 : (before.series.get(key) ?? 0)));
  }
  const sorted = [...buckets].sort((a, b) => a[0] - b[0]);
  const total = sorted.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const at = sorted.findIndex(([, count]) => count >= total * share);
  const [high, upTo] = sorted[at] ?? [0, 0];
  const [low, below] = sorted[at - 1] ?? [0, 0];
  if (high === Infinity) return low;
  return low + (high - low) * (upTo > below ? (total * share - below) / (upTo - below) : 1);
}

function isOf(key: string, name: string): boolean {
  return key.startsWith(name) && (key.length === name.length || key[name.length] === "{");
}

function labelOf(key: string, label: string): string {
  return new RegExp(`[{,]${label}="([^"]*)"`).exec(key)?.[1] ?? "";
}
