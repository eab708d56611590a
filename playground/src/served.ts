/** What the server says of itself: the models, and how it forks. */

import { ApiError, ForkJoin } from "vllm-forkjoin";

export interface Dialect {
  name: string;
  trigger: string | null;
  join: string;
  parent_waits: boolean;
  max_depth: number;
}

export interface Served {
  models: string[];
  isEmbedded: boolean;
  version: string;
  dialect: Dialect | null;
  limits: Record<string, number | null>;
}

/** The API beside this page, whatever path it is below. */
export function client(apiKey: string | null, maxRetries = 2): ForkJoin {
  const baseUrl = new URL("../v1", document.baseURI).href;
  return new ForkJoin({ baseUrl, apiKey: apiKey ?? undefined, maxRetries });
}

/** Asks the server. Throws `ApiError` (401: it wants a key) or `ConnectionFailed`. */
export async function lookAt(apiKey: string | null): Promise<Served> {
  const api = client(apiKey, 0);
  const { data } = (await api.get("/models")) as { data: { id: string }[] };
  const { version, is_embedded_model, dialect, limits } = (await api.get("/forkjoin")) as {
    version: string;
    is_embedded_model: boolean;
    dialect: Dialect | null;
    limits: Record<string, number | null>;
  };
  return { models: data.map((m) => m.id), isEmbedded: is_embedded_model, version, dialect, limits };
}

export function wantsKey(error: unknown): boolean {
  return error instanceof ApiError && error.status === 401;
}
