/** Server-sent events: the `data` of each, whatever pieces the bytes arrive in. */

/** Yields the data of each event. Lines end with LF, CRLF or CR; comments and other fields are skipped. */
export async function* eventData(bytes: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let data: string[] = [];
  for await (const line of lines(bytes)) {
    if (line === "") {
      if (data.length > 0) yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
  // A last event without a blank line behind it is incomplete and is dropped, as the standard says.
}

async function* lines(bytes: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = bytes.getReader();
  const decoder = new TextDecoder();
  // Of a line that has not ended. One of a large tree may be megabytes long, so its pieces are joined once.
  let pieces: string[] = [];
  let mayEnd = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const piece = done ? decoder.decode() : decoder.decode(value, { stream: true });
      pieces.push(piece);
      if (!done && !mayEnd && !/[\r\n]/.test(piece)) continue;
      const rest = pieces.join("");
      // A CR at the very end may be half of a CRLF: it waits for the next piece.
      mayEnd = rest.endsWith("\r");
      const complete = !done && mayEnd ? rest.length - 1 : rest.length;
      const parts = rest.slice(0, complete).split(/\r\n|\n|\r/);
      pieces = [(parts.pop() ?? "") + rest.slice(complete)];
      yield* parts;
      if (done) return;
    }
  } finally {
    // Also when the caller stops reading: the connection closes, and the server cancels the request.
    await reader.cancel().catch(() => undefined);
  }
}
