/** Asks for the API key, which stays in this tab. */

import { useState } from "preact/hooks";
import { Dialog } from "./dialog";

interface Props {
  apiKey: string | null;
  isWrong: boolean;
  onKey: (key: string | null) => void;
  onClose: () => void;
}

export function KeyDialog({ apiKey, isWrong, onKey, onClose }: Props) {
  const [text, setText] = useState(apiKey ?? "");
  return (
    <Dialog title="API key" onClose={onClose}>
      <form
        onSubmit={(e) => {
          e.preventDefault();
          onKey(text.trim() || null);
        }}
      >
        {isWrong && <p role="alert">This server has no such key. Check it, or ask its operator for one.</p>}
        <label class="field">
          <span>The key that this server’s operator gave you</span>
          <input type="password" autocomplete="off" value={text} onInput={(e) => setText(e.currentTarget.value)} />
        </label>
        <p class="hint">It stays in this tab and goes to this server only. Closing the tab forgets it.</p>
        <div class="buttons">
          <button type="submit" class="primary">
            Use the key
          </button>
          {apiKey !== null && (
            <button type="button" onClick={() => onKey(null)}>
              Forget it
            </button>
          )}
        </div>
      </form>
    </Dialog>
  );
}
