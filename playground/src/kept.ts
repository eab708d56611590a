/** What the tab keeps over a reload: the key, the form, the last answers. Other tabs don't see it. */

const PREFIX = "forkjoin.";

export function keep(name: string, value: unknown): void {
  try {
    if (value === null) sessionStorage.removeItem(PREFIX + name);
    else sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Full, or switched off: the page works without.
  }
}

/** Takes what was kept away: what makes a page fail is not there for the next one. */
export function taken(name: string): unknown {
  const value = kept<unknown>(name);
  keep(name, null);
  return value;
}

export function kept<T>(name: string): T | null {
  try {
    const text = sessionStorage.getItem(PREFIX + name);
    return text === null ? null : (JSON.parse(text) as T);
  } catch {
    return null;
  }
}
