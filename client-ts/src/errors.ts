/**
 * ForkJoinError
 * ├─ ApiError           the server refused the request, or gave up on it: has a status
 * ├─ ConnectionFailed   no answer came: the server is gone or unreachable, or `fetch` waits no longer
 * ├─ Unreadable         the answer is not what was asked for: it may be another program's, such as a proxy's page
 * └─ StreamBroken       the answer stopped in the middle, or is no event stream
 *
 * A request that the caller aborted throws the signal's own reason.
 */
export class ForkJoinError extends Error {
  override name = "ForkJoinError";
}

export class ApiError extends ForkJoinError {
  override name = "ApiError";

  constructor(
    message: string,
    readonly status: number,
    /** Seconds after which the server wants to be asked again, if it says so. */
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
  }
}

export class ConnectionFailed extends ForkJoinError {
  override name = "ConnectionFailed";

  constructor(
    message: string,
    /** `hasTimedOut`: the server may be at the answer still, so it is not asked again. */
    readonly hasTimedOut: boolean = false,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export class Unreadable extends ForkJoinError {
  override name = "Unreadable";
}

export class StreamBroken extends ForkJoinError {
  override name = "StreamBroken";
}
