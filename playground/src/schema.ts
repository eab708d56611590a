/** JSON schemas of the form: what is asked with one, and which of them the server refused. */

import { ApiError } from "vllm-forkjoin";

/** Whose schema it is: the answer's, or that of a branch, by its row in the form. */
export type Place = "answer" | number;

/** A schema that can't be used, and why. */
export interface Misfit {
  place: Place;
  text: string;
}

export class SchemaError extends Error {}

/** The `response_format` that `text`, a JSON schema, asks for. Throws SchemaError. */
export function responseFormat(text: string): Record<string, unknown> {
  let schema: unknown;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new SchemaError(`expected a JSON object, got text that is no JSON (${(error as Error).message})`);
  }
  if (typeof schema !== "object" || schema === null || Array.isArray(schema)) {
    throw new SchemaError("expected a JSON object, got another value");
  }
  return { type: "json_schema", json_schema: { name: "schema", schema } };
}

/**
 * The schema that the server refused by `error`; null if it is about something else.
 *
 * `rows`: where in the form the branches stand that the request had.
 */
export function misfitOf(error: unknown, hasSchema: boolean, rows: number[]): Misfit | null {
  if (!(error instanceof ApiError) || error.status !== 400) return null;
  const text = error.message;
  const branch = /^forkjoin\.branches\[(\d+)\]\.response_format\b/.exec(text);
  if (branch !== null) {
    const row = rows[Number(branch[1])];
    return row === undefined ? null : { place: row, text };
  }
  // vLLM names no field where it can't make a grammar of the request's own schema.
  const isOfAnswer = hasSchema && !text.startsWith("forkjoin") && /\b(schema|grammar|response_format)\b/i.test(text);
  return isOfAnswer ? { place: "answer", text } : null;
}
