/** Opens recordings. Anybody may have written the file, so each field that the page reads is checked. */

import { type Recording, ROOT_LANE, type Stop, type Timed } from "./recording";

/** Reads a saved answer, or two to compare. Throws an Error that says what was expected. */
export function parseRecordings(text: string): Recording[] {
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch {
    throw new Error("expected a JSON file that the playground saved, got a file that is no JSON");
  }
  return recordingsOf(given);
}

/** The recordings that `given` is; one without an end is closed. Throws an Error that says what was expected. */
export function recordingsOf(given: unknown): Recording[] {
  const all: unknown[] = Array.isArray(given) ? given : [given];
  if (all.length < 1 || all.length > 2) throw new Error("expected one recording or two to compare");
  return all.map(recordingOf);
}

function recordingOf(given: unknown): Recording {
  const { format, version } = (given ?? {}) as Partial<Recording>;
  if (format !== "forkjoin-recording") throw new Error("expected a recording of the playground, got other JSON");
  if (version !== 1) throw new Error(`expected a recording of version 1, got version ${version}`);
  RECORDING(given, "");
  return closed(given as Recording);
}

/** A recording that just breaks off, with the end that it lacks: no more of its answer will come. */
function closed(recording: Recording): Recording {
  const last = recording.events.at(-1);
  if (last?.type === "finished" || last?.type === "stopped") return recording;
  const end: Timed = { t: last?.t ?? 0, type: "stopped", how: "interrupted", message: "its recording has no end" };
  return { ...recording, events: [...recording.events, end] };
}

/** Throws unless `value`, which stands at `path`, is of this kind. */
type Kind = (value: unknown, path: string) => void;

function is(name: string, fits: (value: unknown) => boolean): Kind {
  return (value, path) => {
    if (!fits(value)) throw new Error(`expected ${name} in ${path}, got ${(JSON.stringify(value) ?? "none").slice(0, 40)}`);
  };
}

/** Checks the fields in the order in which they are named; other fields may stand beside them. */
function fields(kinds: Record<string, Kind>): Kind {
  const object = is("an object", (value) => typeof value === "object" && value !== null && !Array.isArray(value));
  return (value, path) => {
    object(value, path || "the file");
    for (const [name, kind] of Object.entries(kinds)) kind((value as Record<string, unknown>)[name], path ? `${path}.${name}` : name);
  };
}

function list(item: Kind, min = 0): Kind {
  const array = is(min === 0 ? "a list" : "a list that is not empty", (value) => Array.isArray(value) && value.length >= min);
  return (value, path) => {
    array(value, path);
    (value as unknown[]).forEach((one, i) => item(one, `${path}[${i}]`));
  };
}

function orNull(kind: Kind): Kind {
  return (value, path) => value === null || kind(value, path);
}

function optional(kind: Kind): Kind {
  return (value, path) => value === undefined || kind(value, path);
}

const TEXT = is("a string", (value) => typeof value === "string");
const FLAG = is("true or false", (value) => typeof value === "boolean");
const COUNT = is("an integer from 0", isCount);
const STOPS: unknown[] = ["cancelled", "interrupted", "failed"] satisfies Stop[];

const USAGE = fields({
  completion_tokens: COUNT,
  forkjoin: optional(
    fields({
      total_tokens: COUNT,
      critical_path_tokens: COUNT,
      // A request may hide its threads: then no thread of the recording has this index.
      vote: optional(fields({ index: COUNT })),
    }),
  ),
});

const RECORDING = fields({
  request: fields({}),
  startedAt: TEXT,
  parentWaits: FLAG,
  trigger: orNull(TEXT),
  events: (value, path) => list(eventInOrder())(value, path),
});

/** No answer takes a year; the page can draw one that does. */
const MAX_MS = 365 * 24 * 3600 * 1000;

/** An event behind those that were checked before: a thread is forked before anything is told of it. */
function eventInOrder(): Kind {
  const threads = new Set<unknown>();
  let now = 0;
  let isOver = false;
  const isTime = (value: unknown): boolean => typeof value === "number" && value >= now && value <= MAX_MS;
  const thread = is("a thread that was forked before", (value) => threads.has(value));
  const lane = is("-1 or a thread that was forked before", (value) => value === ROOT_LANE || threads.has(value));
  // Gaps are fine: the page shows one answer, and threads are counted over all that a request asked for.
  const fresh = is("an integer from 0 that no other thread has", (value) => isCount(value) && !threads.has(value));
  const index: Kind = (value, path) => {
    fresh(value, path);
    threads.add(value);
  };
  const kinds: Record<Timed["type"], Kind> = {
    forked: fields({ parent: lane, threads: list(fields({ index, id: TEXT, title: TEXT }), 1) }),
    text: fields({ index: lane, text: TEXT, usage: optional(USAGE) }),
    waits: fields({ index: lane, for: TEXT }),
    ended: fields({ index: thread, reason: TEXT, tokens: orNull(COUNT) }),
    joined: fields({ parent: lane, threads: list(thread, 1) }),
    finished: fields({ reason: orNull(TEXT), usage: orNull(USAGE) }),
    stopped: fields({ how: is("how it stopped", (value) => STOPS.includes(value)), message: TEXT }),
  };
  const head = fields({
    t: is("a time, none earlier than the one before", isTime),
    type: is("a known type", (value) => typeof value === "string" && Object.hasOwn(kinds, value)),
  });
  return (value, path) => {
    head(value, path);
    if (isOver) throw new Error(`expected no event behind the end of the answer, got ${path}`);
    const { t, type } = value as Timed;
    kinds[type](value, path);
    now = t;
    isOver = type === "finished" || type === "stopped";
  };
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
