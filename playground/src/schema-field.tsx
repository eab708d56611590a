/** A field for a JSON schema, with what is wrong with it below. */

import { useEffect, useId, useRef } from "preact/hooks";
import type { Misfit } from "./schema";

interface Props {
  name: string;
  value: string;
  wrong: Misfit | null;
  onInput: (value: string) => void;
}

export function SchemaField({ name, value, wrong, onInput }: Props) {
  const id = useId();
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (wrong === null || area.current === null) return;
    const section = area.current.closest("details");
    if (section !== null) section.open = true;
    area.current.focus();
  }, [wrong]);
  return (
    <div class="field">
      <label for={id}>{name}</label>
      <textarea
        ref={area}
        id={id}
        class="code"
        rows={value === "" ? 1 : 3}
        spellcheck={false}
        value={value}
        placeholder={`{"type": "object", "properties": {…}}`}
        aria-invalid={wrong !== null}
        aria-describedby={wrong === null ? undefined : `${id}-wrong`}
        onInput={(e) => onInput(e.currentTarget.value)}
      />
      {wrong !== null && (
        <span class="wrong" id={`${id}-wrong`}>
          {wrong.text}
        </span>
      )}
    </div>
  );
}
