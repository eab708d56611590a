/** The form: what can be asked, as the page's fields hold it, and the request that it makes. */

import type { Branch, ChatRequest, ForkJoinOptions } from "vllm-forkjoin";
import { type Place, responseFormat, SchemaError } from "./schema";

export interface FormBranch {
  title: string;
  text: string;
  /** The JSON schema of what its thread writes, as text. */
  schema?: string;
}

export interface Form {
  prompt: string;
  system: string;
  temperature: string;
  top_p: string;
  max_tokens: string;
  seed: string;
  /** Who forks: the model by itself, branches of the request, or a vote of several answers. */
  mode: "model" | "branches" | "vote";
  max_threads_per_fork: string;
  max_forks: string;
  max_tokens_per_thread: string;
  max_total_tokens: string;
  max_threads_running: string;
  /** The JSON schema of the answer, as text. */
  schema: string;
  structured: boolean;
  branches: FormBranch[];
  closing: string;
  best_of: string;
  vote: string;
  confidence: string;
  prune: string;
  wait_for_all: boolean;
  /** More fields of the request, as JSON. */
  more: string;
}

export const EMPTY: Form = {
  prompt: "",
  system: "",
  temperature: "",
  top_p: "",
  max_tokens: "",
  seed: "",
  mode: "model",
  max_threads_per_fork: "",
  max_forks: "",
  max_tokens_per_thread: "",
  max_total_tokens: "",
  max_threads_running: "",
  schema: "",
  structured: false,
  branches: [
    { title: "for", text: "" },
    { title: "against", text: "" },
  ],
  closing: "",
  best_of: "5",
  vote: "",
  confidence: "",
  prune: "",
  wait_for_all: false,
  more: "",
};

export class WrongForm extends Error {
  /** `place`: the schema that is wrong, if it is one. */
  constructor(
    message: string,
    readonly place: Place | null = null,
  ) {
    super(message);
  }
}

/** The request that `form` makes. Throws WrongForm, which names the field. */
export function requestOf(form: Form, model: string): ChatRequest {
  const messages = [{ role: "user", content: form.prompt }];
  if (form.system.trim()) messages.unshift({ role: "system", content: form.system });
  const sampling = numbers(form, ["temperature", "top_p", "max_tokens", "seed"]);
  const { forkjoin: moreForkjoin = {}, ...more } = json(form.more);
  if (!isObject(moreForkjoin)) throw new WrongForm("More fields: forkjoin: expected a JSON object, got another value");
  const forkjoin: ForkJoinOptions = { ...forkjoinOf(form), ...moreForkjoin };
  const asked = Object.keys(forkjoin).length > 0 ? { forkjoin } : {};
  return { model, messages, ...sampling, ...formatOf(form.schema, "answer"), ...asked, ...more };
}

/** The same request without any fork: the same weights decode in a row. */
export function sequential(request: ChatRequest): ChatRequest {
  return { ...request, forkjoin: { enabled: false } };
}

/** A request with `best_of` or branches has no sequential counterpart that means the same. */
export function isComparable(form: Form): boolean {
  return form.mode === "model";
}

const LIMITS = [
  "max_threads_per_fork",
  "max_forks",
  "max_tokens_per_thread",
  "max_total_tokens",
  "max_threads_running",
] as const satisfies (keyof Form & keyof ForkJoinOptions)[];

function forkjoinOf(form: Form): ForkJoinOptions {
  const limits = numbers(form, LIMITS);
  const structured = form.structured ? { structured: "answer" as const } : {};
  return { ...limits, ...structured, ...forkOf(form) };
}

function forkOf(form: Form): ForkJoinOptions {
  if (form.mode === "model") return {};
  if (form.mode === "branches") {
    const branches = branchesAsked(form).map((at) => branchOf(form.branches[at] as FormBranch, at));
    if (branches.length === 0) throw new WrongForm("Branches: expected one with a title or a text");
    return { branches, ...(form.closing ? { closing: form.closing } : {}) };
  }
  if (!form.vote) throw new WrongForm("Vote: expected a regular expression that finds the result");
  const prune = form.prune ? { prune: form.prune as NonNullable<ForkJoinOptions["prune"]> } : {};
  const all = form.wait_for_all ? { wait_for_all: true } : {};
  return { ...numbers(form, ["best_of", "confidence"]), vote: form.vote, ...prune, ...all };
}

/** Where in the form the request's branches stand: an empty row is none. */
export function branchesAsked({ branches }: Form): number[] {
  return branches.flatMap(({ title, text, schema }, at) => (title || text || schema?.trim() ? [at] : []));
}

function branchOf({ title, text, schema }: FormBranch, at: number): Branch {
  return { title, text, ...formatOf(schema ?? "", at) };
}

function formatOf(schema: string, place: Place): Pick<Branch, "response_format"> {
  try {
    return schema.trim() ? { response_format: responseFormat(schema) } : {};
  } catch (error) {
    if (!(error instanceof SchemaError)) throw error;
    const where = place === "answer" ? "The answer’s schema" : `The schema of branch ${place + 1}`;
    throw new WrongForm(`${where}: ${error.message}`, place);
  }
}

function numbers(form: Form, names: readonly (keyof Form)[]): Record<string, number> {
  const given: Record<string, number> = {};
  for (const name of names) {
    const text = String(form[name]).trim();
    if (!text) continue;
    const value = Number(text);
    if (!Number.isFinite(value)) throw new WrongForm(`${name}: expected a number, got “${text}”`);
    // Beyond that, JavaScript rounds: the server would get another seed than the one that stands here.
    if (Math.abs(value) > Number.MAX_SAFE_INTEGER) throw new WrongForm(`${name}: expected at most 9007199254740991, got “${text}”`);
    given[name] = value;
  }
  return given;
}

function json(text: string): Record<string, unknown> {
  if (!text.trim()) return {};
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch {
    throw new WrongForm("More fields: expected a JSON object, got text that is no JSON");
  }
  if (!isObject(given)) throw new WrongForm("More fields: expected a JSON object, got another value");
  return given;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
