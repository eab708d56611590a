// Lets the search work without a server. A browser starts no Worker for a page that it reads from a disk.
// There this class stands in for Worker: it runs the script in a hidden frame of the page.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #isReady;

    constructor(url) {
      super();
      this.#frame.hidden = true;
      this.#frame.srcdoc = "<!doctype html>";
      this.#isReady = new Promise((resolve) => {
        this.#frame.onload = () => {
          const { contentWindow: scope, contentDocument: inner } = this.#frame;
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = inner.createElement("script");
          script.src = url;
          script.onload = () => resolve(scope);
          inner.body.append(script);
        };
      });
      document.documentElement.append(this.#frame);
    }

    async postMessage(data) {
      const scope = await this.#isReady;
      scope.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
