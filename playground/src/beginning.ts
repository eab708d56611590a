/** What an answer waits for before it begins. Its stream can't say so: the server's list of families does. */

import type { ForkJoin, Wait } from "vllm-forkjoin";
import type { Engine } from "./operator/families";

/** The server answers once a second. */
const EVERY_MS = 1000;

/** A name for a request that no other has; `crypto.randomUUID` is not there on a page without TLS. */
export function freshName(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** What the request that was sent with `name` as its `request_id` waits for; null: nothing that is known. */
export function waitIn(engines: Engine[], name: string): Wait | null {
  // vLLM says before a request's id what it is of, our server appends a key.
  const family = engines.flatMap((engine) => engine.families).find((f) => f.request_id?.startsWith(`chatcmpl-${name}-`));
  if (family?.state === "prefill") return "prompt";
  return family?.waits_for[0] ?? null;
}

/** Tells what the request `name` waits for, whenever that changes, until the signal is aborted. */
export async function watchBeginning(
  api: ForkJoin,
  name: string,
  signal: AbortSignal,
  tell: (wait: Wait) => void,
  everyMs = EVERY_MS,
): Promise<void> {
  let told: Wait | null = null;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, everyMs));
    if (signal.aborted) return;
    let wait: Wait | null;
    try {
      const { engines } = (await api.get("/forkjoin/families", { signal })) as { engines: Engine[] };
      wait = waitIn(engines, name);
    } catch {
      return; // The server has no such list, or not for this key: the page says how long it waits, and no more.
    }
    if (signal.aborted) return;
    if (wait !== null && wait !== told) tell(wait);
    told = wait ?? told;
  }
}
