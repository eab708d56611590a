/** Shows the request as a program, to be copied. */

import { useState } from "preact/hooks";
import type { ChatRequest } from "vllm-forkjoin";
import { Dialog } from "./dialog";
import { LANGUAGES, type Language, snippet } from "./snippets";

export function CopyDialog({ request, hasKey, onClose }: { request: ChatRequest; hasKey: boolean; onClose: () => void }) {
  const [language, setLanguage] = useState<Language>("curl");
  const [isCopied, setCopied] = useState(false);
  const text = snippet(language, request, new URL("../v1", document.baseURI).href, hasKey);
  const choose = (chosen: Language): void => {
    setLanguage(chosen);
    setCopied(false);
  };
  return (
    <Dialog title="The request as a program" onClose={onClose}>
      <fieldset class="segmented">
        <legend>Language</legend>
        {LANGUAGES.map((name) => (
          <label key={name}>
            <input type="radio" name="language" checked={language === name} onChange={() => choose(name)} />
            <span>{name}</span>
          </label>
        ))}
      </fieldset>
      <pre class="snippet" tabIndex={0} aria-label={`The request in ${language}`}>
        {text}
      </pre>
      <div class="buttons">
        <button type="button" class="primary" onClick={() => void copy(text).then(setCopied)}>
          {isCopied ? "Copied" : "Copy"}
        </button>
      </div>
    </Dialog>
  );
}

/** Whether `text` is in the clipboard. Browsers have no clipboard for pages over plain HTTP from afar. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const pre = document.querySelector(".snippet");
    if (pre !== null) getSelection()?.selectAllChildren(pre);
    return document.execCommand("copy");
  }
}
