/** The page: what to ask on the left, the answer on the right. */

import { useCallback, useEffect, useReducer, useRef, useState } from "preact/hooks";
import { Composer } from "./composer";
import { CopyDialog } from "./copy-dialog";
import { examplesFor } from "./examples";
import { branchesAsked, EMPTY, type Form, isComparable, requestOf, sequential, WrongForm } from "./form";
import { Guarded } from "./guarded";
import { keep, kept, taken } from "./kept";
import { KeyDialog } from "./key-dialog";
import { type Notice, ofError } from "./notices";
import { parseRecordings, recordingsOf } from "./opening";
import type { Recording } from "./recording";
import { Run } from "./run";
import { type Misfit, misfitOf } from "./schema";
import { client, lookAt, type Served, wantsKey } from "./served";
import { Stage } from "./stage";
import type { ChatRequest } from "vllm-forkjoin";

export function App() {
  const [apiKey, setApiKey] = useState<string | null>(() => kept<string>("key"));
  const [served, setServed] = useState<Served | null>(null);
  const [trouble, setTrouble] = useState<unknown>(null);
  const [asksKey, setAsksKey] = useState(false);
  /** The request that the dialog for copying shows. */
  const [copied, setCopied] = useState<ChatRequest | null>(null);
  const [form, setForm] = useState<Form | null>(() => withDefaults(kept<Partial<Form>>("form")));
  const [chosen, setChosen] = useState<string | null>(null);
  const [wrong, setWrong] = useState<Notice | null>(null);
  const [misfit, setMisfit] = useState<Misfit | null>(null);
  const [runs, setRuns] = useRuns();

  const latest = useRef<Promise<Served> | null>(null);
  const look = useCallback((key: string | null) => {
    setTrouble(null);
    const looking = lookAt(key);
    latest.current = looking;
    looking.then(
      (found) => {
        if (latest.current !== looking) return;
        setServed(found);
        setAsksKey(false);
      },
      (error: unknown) => {
        // A key that came later may be right: the answer to the earlier one says nothing any more.
        if (latest.current !== looking) return;
        setTrouble(error);
        if (wantsKey(error)) setAsksKey(true);
      },
    );
  }, []);
  useEffect(() => look(apiKey), [apiKey, look]);

  const examples = examplesFor(served);
  const fields = form ?? (served === null ? EMPTY : (examples[0]?.form ?? EMPTY));
  const change = (some: Partial<Form>): void => {
    const next = { ...fields, ...some };
    setForm(next);
    setMisfit(null);
    keep("form", next);
  };
  const refusal = runs[0]?.error ?? null;
  useEffect(() => setMisfit(misfitOf(refusal, fields.schema !== "", branchesAsked(fields))), [refusal]);
  const model = chosen ?? served?.models[0] ?? "";
  const request = (): ChatRequest | null => {
    try {
      setWrong(null);
      return requestOf(fields, model);
    } catch (error) {
      if (!(error instanceof WrongForm)) throw error;
      setWrong({ kind: "error", title: "Check the form", text: error.message });
      setMisfit(error.place === null ? null : { place: error.place, text: error.message });
      return null;
    }
  };
  const isRunning = runs.some((run) => run.isRunning);
  const canAsk = !isRunning && fields.prompt.trim() !== "" && served !== null;
  const start = (isPair: boolean): void => {
    const asked = request();
    if (asked === null) return;
    const all = isPair ? [asked, sequential(asked)] : [asked];
    setRuns(all.map((one) => (onChange) => Run.start(client(apiKey), one, served?.dialect ?? null, onChange)));
  };
  const open = (file: File): void => {
    void file.text().then((text) => {
      try {
        setRuns(parseRecordings(text).map((recording) => (onChange) => new Run(recording, onChange)));
        setWrong(null);
      } catch (error) {
        setWrong({ kind: "error", title: `${file.name} can’t be opened`, text: (error as Error).message });
      }
    });
  };
  const drop = (error: unknown): void => {
    setRuns([]);
    setWrong({ kind: "error", title: "The answer can’t be shown", text: `The page failed at it and dropped it. ${error}` });
  };

  return (
    <>
      <header class="bar">
        <h1>
          <Mark /> forkjoin <span>playground</span>
        </h1>
        <nav aria-label="Pages">
          <a href="./operator">Operator</a>
        </nav>
        <Server served={served} model={model} trouble={trouble} onRetry={() => look(apiKey)} />
        <button type="button" class="quiet" onClick={() => setAsksKey(true)}>
          {apiKey === null ? "API key" : "API key ✓"}
        </button>
      </header>
      <main>
        <form
          class="composer"
          aria-label="Request"
          onSubmit={(e) => {
            e.preventDefault();
            // By Ctrl+Enter, also where there is no button that could be pressed.
            if (canAsk) start(false);
          }}
          onKeyDown={(e) => {
            if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) e.currentTarget.requestSubmit();
          }}
        >
          <Composer form={fields} onChange={change} examples={examples} served={served} model={model} onModel={setChosen} misfit={misfit}>
            <div class="buttons">
              {isRunning ? (
                // A button of its own: one that turned into Run would submit the form with the same click.
                <button key="cancel" type="button" class="primary danger" onClick={() => runs.forEach((run) => run.cancel())}>
                  Cancel
                </button>
              ) : (
                <button key="run" type="submit" class="primary" disabled={!canAsk}>
                  Run
                </button>
              )}
              <button
                type="button"
                disabled={!canAsk || !isComparable(fields)}
                title={isComparable(fields) ? "Forked and in a row, both at once" : "Only where the model forks by itself"}
                onClick={() => start(true)}
              >
                Compare
              </button>
              <button type="button" disabled={!fields.prompt.trim()} onClick={() => setCopied(request())}>
                Copy as…
              </button>
            </div>
            {wrong !== null && (
              <p class={`notice ${wrong.kind}`} role="alert">
                <b>{wrong.title}.</b> {wrong.text}
              </p>
            )}
          </Composer>
          <div class="buttons files">
            <button type="button" disabled={runs.length === 0 || isRunning} onClick={() => save(runs.map((r) => r.recording))}>
              Save answer
            </button>
            <label class="button">
              Open…
              <input
                type="file"
                class="visually-hidden"
                accept="application/json,.json"
                onChange={(e) => {
                  const file = e.currentTarget.files?.[0];
                  if (file !== undefined) open(file);
                  e.currentTarget.value = "";
                }}
              />
            </label>
          </div>
        </form>
        {runs.length > 0 ? (
          <Guarded onFault={drop}>
            <Stage runs={runs} />
          </Guarded>
        ) : (
          <Welcome served={served} />
        )}
      </main>
      {asksKey && (
        <KeyDialog
          apiKey={apiKey}
          isWrong={wantsKey(trouble) && apiKey !== null}
          onKey={(key) => {
            keep("key", key);
            if (key === apiKey) look(key);
            setApiKey(key);
            setAsksKey(false);
          }}
          onClose={() => setAsksKey(false)}
        />
      )}
      {copied !== null && <CopyDialog request={copied} hasKey={apiKey !== null} onClose={() => setCopied(null)} />}
    </>
  );
}

/** The answers on the page, which a reload brings back; one that was being written is marked as interrupted. */
function useRuns(): [Run[], (make: ((onChange: () => void) => Run)[]) => void] {
  const [, render] = useReducer((n: number) => n + 1, 0);
  const [runs, setRuns] = useState(restored);
  const current = useRef(runs);
  current.current = runs;
  useEffect(() => {
    const leave = (): void => {
      for (const run of current.current) run.interrupt();
      keep("answers", current.current.map((run) => run.recording));
    };
    addEventListener("pagehide", leave);
    return () => removeEventListener("pagehide", leave);
  }, []);
  const start = (make: ((onChange: () => void) => Run)[]): void => {
    for (const run of current.current) run.cancel();
    // The frames draw what comes; the page around them changes when an answer ends.
    const started: Run[] = make.map((one) => one(() => started.some((run) => run.isRunning) || render(undefined)));
    setRuns(started);
  };
  return [runs, start];
}

function restored(): Run[] {
  try {
    return recordingsOf(taken("answers")).map((recording) => new Run(recording, () => {}));
  } catch {
    return []; // None was kept, or none that this page can read.
  }
}

function withDefaults(some: Partial<Form> | null): Form | null {
  return some === null ? null : { ...EMPTY, ...some };
}

function save(recordings: Recording[]): void {
  const text = JSON.stringify(recordings.length === 1 ? recordings[0] : recordings);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `forkjoin-${recordings[0]?.startedAt.slice(0, 19).replaceAll(":", "-")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function Server({ served, model, trouble, onRetry }: { served: Served | null; model: string; trouble: unknown; onRetry: () => void }) {
  if (trouble !== null) {
    return (
      <p class="server trouble" role="alert">
        <span class="dot" /> {ofError(trouble).title}.{" "}
        {!wantsKey(trouble) && (
          <button type="button" onClick={onRetry}>
            Try again
          </button>
        )}
      </p>
    );
  }
  if (served === null) return <p class="server">Looking at the server…</p>;
  return (
    <p class="server well">
      <span class="dot" /> <b>{model}</b>
      <span class="dialect">{served.dialect === null ? "fork/join is off" : `dialect ${served.dialect.name}`}</span>
    </p>
  );
}

function Welcome({ served }: { served: Served | null }) {
  return (
    <section class="welcome" aria-label="Answer">
      <h2>See it think</h2>
      <p>
        Run a prompt. When the model forks, each thread gets a lane; where the threads join, the answer goes on with what
        they found.
      </p>
      {served?.dialect === null && <p class="notice warning">This server decodes in a row: fork/join is off.</p>}
      {served?.isEmbedded && <p>The embedded model knows multiplications only. It forks when two of them are long. Those that wait for others, such as c=a*27, make a second fork.</p>}
    </section>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true" class="mark-logo">
      <path d="M3 16h5c4 0 4-9 8-9s4 9 8 9h5M8 16c4 0 4 9 8 9s4-9 8-9M8 16h16" />
    </svg>
  );
}
