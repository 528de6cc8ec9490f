// Browsers start no workers for pages from a disk. Search is one, so there it runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html>";
      this.frame.onload = () => this.start(new URL(address, location.href));
      document.body.append(this.frame);
    }

    start(address) {
      const inner = this.frame.contentWindow;
      inner.importScripts = (...scripts) =>
        scripts.reduce((before, script) => before.then(() => add(script)), Promise.resolve());
      // What the worker says comes to this page, and what this page says to the worker.
      inner.postMessage = (data) => {
        const message = new MessageEvent("message", { data });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      };
      const add = (script) => new Promise((done, failed) => {
        const element = inner.document.createElement("script");
        Object.assign(element, { src: new URL(script, address).href, onload: done, onerror: failed });
        inner.document.body.append(element);
      });
      add(address).then(() => {
        this.inner = inner;
        this.waiting.forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (this.inner) this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
