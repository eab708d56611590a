export { Assembler, eventsOf, ROOT } from "./assemble.js";
export { type CallOptions, chunksOf, type ClientOptions, ForkJoin } from "./client.js";
export { ApiError, ConnectionFailed, ForkJoinError, StreamBroken, Unreadable } from "./errors.js";
export type * from "./events.js";
export type { Retry } from "./retry.js";
export type * from "./wire.js";
