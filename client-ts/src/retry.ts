/** When to ask again: after no answer, and after the answers that say "later". */

import { ApiError, ConnectionFailed } from "./errors.js";

/** One more try is due in `delayS` seconds, because of `error`. */
export interface Retry {
  attempt: number;
  delayS: number;
  error: ApiError | ConnectionFailed;
}

export interface RetryOptions {
  maxRetries: number;
  /** A server that asks for a longer wait than this gets no retry. */
  maxDelayS: number;
  signal?: AbortSignal | undefined;
  onRetry?: ((retry: Retry) => void) | undefined;
}

const LATER = new Set([408, 429]);

/** Call `ask` until it answers, fails for good, or has been tried often enough. */
export async function withRetries<T>(ask: () => Promise<T>, options: RetryOptions): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof ApiError || error instanceof ConnectionFailed)) throw error;
      const delayS = delayBefore(attempt, error);
      if (attempt > options.maxRetries || !isPassing(error) || delayS > options.maxDelayS) throw error;
      options.onRetry?.({ attempt, delayS, error });
      await pause(delayS, options.signal);
    }
  }
}

/** The seconds that a `Retry-After` header asks for: a number, or an HTTP date. */
export function retryAfterS(header: string | null, nowMs = Date.now()): number | null {
  if (header === null) return null;
  const text = header.trim();
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text);
  const at = Date.parse(text);
  return Number.isNaN(at) ? null : Math.max(0, (at - nowMs) / 1000);
}

function isPassing(error: ApiError | ConnectionFailed): boolean {
  if (error instanceof ConnectionFailed) return !error.hasTimedOut;
  return LATER.has(error.status) || error.status >= 500;
}

/** What the server asks for; else half a second, doubled with each try, up to 8 seconds. */
function delayBefore(attempt: number, error: ApiError | ConnectionFailed): number {
  const asked = error instanceof ApiError ? error.retryAfterS : null;
  return asked ?? Math.min(8, 0.5 * 2 ** (attempt - 1));
}

function pause(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, seconds * 1000);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  });
}
