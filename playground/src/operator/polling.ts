/** Asks the server for something again and again, one question at a time. */

import { useEffect, useRef, useState } from "preact/hooks";

export const EVERY_MS = 2000;
/** A server that takes longer does not answer: what stands on the page is old. */
const PATIENCE_MS = 10_000;

export interface Polled {
  /** What the server said in the place of an answer; null: it has answered. */
  trouble: string | null;
  wantsKey: boolean;
}

/** Reads `path`, below the folder of this page, and hands each answer's text to `onText`, which may throw. */
export function usePolled(path: string, apiKey: string | null, onText: (text: string) => void): Polled {
  const [polled, setPolled] = useState<Polled>({ trouble: null, wantsKey: false });
  const take = useRef(onText);
  take.current = onText;

  useEffect(() => {
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout>;
    const headers: Record<string, string> = apiKey ? { authorization: `Bearer ${apiKey}` } : {};
    const read = async (): Promise<void> => {
      try {
        const signal = AbortSignal.any([abort.signal, AbortSignal.timeout(PATIENCE_MS)]);
        const response = await fetch(new URL(path, document.baseURI), { headers, signal });
        const text = await response.text();
        if (response.ok) take.current(text);
        setPolled({ trouble: response.ok ? null : refusal(response.status, text), wantsKey: response.status === 401 });
      } catch (error) {
        if (abort.signal.aborted) return;
        const { name, message } = error as Error;
        const trouble = ["TypeError", "TimeoutError"].includes(name) ? "The server does not answer." : message;
        setPolled({ trouble, wantsKey: false });
      }
      if (!abort.signal.aborted) timer = setTimeout(() => void read(), EVERY_MS);
    };
    void read();
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [path, apiKey]);
  return polled;
}

/** What the server says of an error, in its own words where it has some. */
function refusal(status: number, text: string): string {
  let message: unknown;
  try {
    message = (JSON.parse(text) as { error?: { message?: unknown } }).error?.message;
  } catch {
    // no JSON: a proxy's
  }
  return `The server answered ${status}${typeof message === "string" ? `: ${message}` : ""}.`;
}
