/** What to ask: the prompt with examples, sampling, and all settings of fork/join. */

import type { ComponentChildren } from "preact";
import type { Example } from "./examples";
import type { Form, FormBranch } from "./form";
import type { Misfit } from "./schema";
import { SchemaField } from "./schema-field";
import { Section } from "./section";
import type { Served } from "./served";

interface Props {
  form: Form;
  onChange: (change: Partial<Form>) => void;
  examples: Example[];
  served: Served | null;
  model: string;
  onModel: (model: string) => void;
  /** The schema that was refused last. */
  misfit: Misfit | null;
  children: ComponentChildren;
}

export function Composer({ form, onChange, examples, served, model, onModel, misfit, children }: Props) {
  return (
    <>
      {(served?.models.length ?? 0) > 1 && (
        <label class="field">
          <span>Model</span>
          <select value={model} onChange={(e) => onModel(e.currentTarget.value)}>
            {served?.models.map((name) => <option key={name}>{name}</option>)}
          </select>
        </label>
      )}
      <label class="field prompt">
        <span>Prompt</span>
        <textarea
          rows={5}
          value={form.prompt}
          placeholder="What should the model work out?"
          onInput={(e) => onChange({ prompt: e.currentTarget.value })}
        />
      </label>
      <div class="examples" role="group" aria-label="Examples">
        {examples.map(({ name, form: example }) => (
          <button key={name} type="button" class="chip" onClick={() => onChange(example)}>
            {name}
          </button>
        ))}
      </div>
      {children}
      <Section title="Fork and join" isUsed={form.mode !== "model"}>
        <ForkJoinFields form={form} onChange={onChange} misfit={misfit} limits={served?.limits ?? {}} />
      </Section>
      <Section title="Structured output" isUsed={form.schema !== "" || form.structured}>
        <SchemaField
          name="JSON schema of the answer"
          value={form.schema}
          wrong={misfit?.place === "answer" ? misfit : null}
          onInput={(schema) => onChange({ schema })}
        />
        <Check form={form} onChange={onChange} name="structured" label="It holds for the answer only: before it the model may fork" />
      </Section>
      <Section title="Sampling">
        <div class="grid">
          <Num form={form} onChange={onChange} name="temperature" label="Temperature" hint="server’s" />
          <Num form={form} onChange={onChange} name="top_p" label="Top p" hint="server’s" />
          <Num form={form} onChange={onChange} name="max_tokens" label="Max tokens" hint="context" />
          <Num form={form} onChange={onChange} name="seed" label="Seed" hint="random" />
        </div>
        <label class="field">
          <span>System prompt</span>
          <textarea rows={2} value={form.system} onInput={(e) => onChange({ system: e.currentTarget.value })} />
        </label>
        <label class="field">
          <span>More fields (JSON)</span>
          <textarea
            class="code"
            rows={2}
            spellcheck={false}
            value={form.more}
            placeholder={`{"top_k": 20, "stop": ["\\n\\n"]}`}
            onInput={(e) => onChange({ more: e.currentTarget.value })}
          />
        </label>
      </Section>
    </>
  );
}

type Fields = Pick<Props, "form" | "onChange">;
type WithMisfit = Pick<Props, "misfit">;

const MODES: [Form["mode"], string][] = [
  ["model", "The model"],
  ["branches", "My branches"],
  ["vote", "A vote"],
];

function ForkJoinFields({ form, onChange, misfit, limits }: Fields & WithMisfit & { limits: Record<string, number | null> }) {
  const hint = (name: string): string => String(limits[name] ?? "none");
  return (
    <>
      <fieldset class="segmented">
        <legend>Who forks</legend>
        {MODES.map(([mode, label]) => (
          <label key={mode}>
            <input type="radio" name="mode" checked={form.mode === mode} onChange={() => onChange({ mode })} />
            <span>{label}</span>
          </label>
        ))}
      </fieldset>
      {form.mode === "branches" && <Branches form={form} onChange={onChange} misfit={misfit} />}
      {form.mode === "vote" && <Vote form={form} onChange={onChange} />}
      <div class="grid">
        <Num form={form} onChange={onChange} name="max_threads_per_fork" label="Threads a fork" hint={hint("max_threads_per_fork")} />
        <Num form={form} onChange={onChange} name="max_forks" label="Forks" hint={hint("max_forks")} />
        <Num form={form} onChange={onChange} name="max_tokens_per_thread" label="Tokens a thread" hint={hint("max_tokens_per_thread")} />
        <Num form={form} onChange={onChange} name="max_total_tokens" label="Tokens in all" hint={hint("max_total_tokens")} />
        <Num form={form} onChange={onChange} name="max_threads_running" label="Threads at a time" hint="server’s" />
      </div>
    </>
  );
}

function Branches({ form, onChange, misfit }: Fields & WithMisfit) {
  const change = (at: number, field: keyof FormBranch, value: string): void =>
    onChange({ branches: form.branches.map((b, i) => (i === at ? { ...b, [field]: value } : b)) });
  return (
    <div class="branches">
      {form.branches.map((branch, i) => (
        <div class="branch" key={i}>
          <input
            aria-label={`Title of branch ${i + 1}`}
            placeholder="title"
            value={branch.title}
            onInput={(e) => change(i, "title", e.currentTarget.value)}
          />
          <input
            aria-label={`Text that branch ${i + 1} goes on from`}
            placeholder="goes on from this text"
            value={branch.text}
            onInput={(e) => change(i, "text", e.currentTarget.value)}
          />
          <button
            type="button"
            class="quiet"
            aria-label={`Remove branch ${i + 1}`}
            onClick={() => onChange({ branches: form.branches.filter((_, j) => j !== i) })}
          >
            ✕
          </button>
          <SchemaField
            name={`JSON schema of branch ${i + 1}`}
            value={branch.schema ?? ""}
            wrong={misfit?.place === i ? misfit : null}
            onInput={(schema) => change(i, "schema", schema)}
          />
        </div>
      ))}
      <button type="button" class="chip" onClick={() => onChange({ branches: [...form.branches, { title: "", text: "" }] })}>
        Add a branch
      </button>
      <label class="field">
        <span>Closing: the model goes on from it behind all branches</span>
        <input value={form.closing} onInput={(e) => onChange({ closing: e.currentTarget.value })} />
      </label>
    </div>
  );
}

function Vote({ form, onChange }: Fields) {
  return (
    <>
      <div class="grid">
        <Num form={form} onChange={onChange} name="best_of" label="Answers" hint="5" />
        <Num form={form} onChange={onChange} name="confidence" label="Confidence" hint="all at once" />
      </div>
      <label class="field">
        <span>A vote is the last match of</span>
        <input
          class="code"
          spellcheck={false}
          value={form.vote}
          placeholder={String.raw`Answer: (?P<result>\d+)`}
          onInput={(e) => onChange({ vote: e.currentTarget.value })}
        />
      </label>
      <label class="field">
        <span>Prune</span>
        <select value={form.prune} onChange={(e) => onChange({ prune: e.currentTarget.value })}>
          <option value="">no thread</option>
          <option value="confidence">the least sure</option>
          <option value="agreement">those that disagree</option>
          <option value="memory">the least sure, when memory runs out</option>
          <option value="own">by the server’s own policy</option>
        </select>
      </label>
      <Check form={form} onChange={onChange} name="wait_for_all" label="Let all threads run to their ends" />
    </>
  );
}

function Num({ form, onChange, name, label, hint }: Fields & { name: keyof Form; label: string; hint: string }) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        inputMode="decimal"
        value={String(form[name])}
        placeholder={hint}
        onInput={(e) => onChange({ [name]: e.currentTarget.value })}
      />
    </label>
  );
}

function Check({ form, onChange, name, label }: Fields & { name: "structured" | "wait_for_all"; label: string }) {
  return (
    <label class="check">
      <input type="checkbox" checked={form[name]} onChange={(e) => onChange({ [name]: e.currentTarget.checked })} />
      <span>{label}</span>
    </label>
  );
}
