// The threads of a streamed chat completion, put together as `message.threads` of one that is not streamed.
// The npm SDK's `.stream()` puts together what it knows; of `threads` it keeps the last entries only.
//
//   const threads = [];
//   const stream = client.chat.completions.stream({ ...body, stream_options: { include_threads: true } });
//   stream.on("chunk", (chunk) => gatherThreads(threads, chunk));
//   const completion = await stream.finalChatCompletion();  // by now `threads` are complete

export function gatherThreads(threads, chunk) {
  for (const { content = "", waits_for, ...entry } of chunk.choices[0]?.delta.threads ?? []) {
    const thread = (threads[entry.index] ??= { content: "" });
    Object.assign(thread, entry, { content: thread.content + content });
  }
  return threads;
}
