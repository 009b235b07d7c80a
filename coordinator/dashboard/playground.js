// One request: the form, the stream of events, and the tokens in the colours of where they come from.
import { Picker } from "./picker.js";
import { $, key, reason } from "./shared.js";

const EXAMPLE = "A baker makes 12 loaves every hour for 6 hours and sells 50 of them. How many loaves are left?";

const MEANING = {
  accepted: "drafted, and accepted by the target",
  recovered: "the target's own, in place of a draft that it rejected",
  bonus: "the target's own, after a draft that was accepted whole",
  self_decoded: "the target's own, where no draft was tested",
};

// Server-sent events from a POST, which EventSource cannot do: yields [name, data].
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) {
      const lines = buffer.slice(0, end).split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const data = field("data");
      if (data && data !== "[DONE]") yield [field("event") || "error", JSON.parse(data)];
    }
  }
}

export class Playground {
  constructor(timeline) {
    this.timeline = timeline;
    this.running = null; // what aborts the request that is under way
    this.picker = new Picker($("output"), ".token", $("token-told"));
    $("prompt").value = EXAMPLE;
    $("form").addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    $("stop").addEventListener("click", () => this.running?.abort());
    $("trace").addEventListener("click", () => this.saveTrace());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("form").requestSubmit(); }
      if (event.key === "Escape") this.running?.abort();
    });
  }

  body() {
    const form = new FormData($("form"));
    const speculative = { mode: form.get("mode"), rule: form.get("rule") };
    if (form.get("length_policy")) speculative.length_policy = form.get("length_policy");
    const body = { max_tokens: Number(form.get("max_tokens")), temperature: Number(form.get("temperature")), speculative };
    if (form.get("seed")) body.seed = Number(form.get("seed"));
    if (form.get("chat")) body.messages = [{ role: "user", content: form.get("prompt") }];
    else body.prompt = form.get("prompt");
    return body;
  }

  async run() {
    if (this.running) return;
    this.running = new AbortController();
    this.begin();
    try {
      const response = await fetch("/paceline/generate", {
        method: "POST",
        headers: { "content-type": "application/json", ...key.headers() },
        body: JSON.stringify(this.body()),
        signal: this.running.signal,
      });
      if (response.status === 401) key.ask();
      if (!response.ok) throw new Error(await reason(response));
      for await (const [name, data] of events(response)) this.take(name, data);
      if (!this.isOver) throw new Error("The server ended the answer before it was complete.");
    } catch (error) {
      if (error.name === "AbortError") this.stopped();
      else this.fail(error.message);
    } finally {
      this.running = null;
      $("go").disabled = false;
      $("stop").disabled = true;
      $("output").classList.remove("running");
    }
  }

  begin() {
    this.isOver = false; // the server has said how it ended
    this.requestId = "";
    this.picker.clear();
    $("trace-row").hidden = true;
    this.counts = { accepted: 0, recovered: 0, bonus: 0, self_decoded: 0 };
    $("output").replaceChildren();
    $("output").classList.add("running");
    $("figures").replaceChildren();
    $("error").hidden = true;
    $("summary").textContent = "Waiting for the first token…";
    $("go").disabled = true;
    $("stop").disabled = false;
    this.count();
    this.timeline.clear("Running…");
  }

  take(name, data) {
    if (name === "error") {
      this.fail(data.error.message);
      return;
    }
    if (name === "start") {
      this.requestId = data.request_id;
      $("summary").textContent = "Generating…";
      return;
    }
    this.timeline.add(data.spans, data.sources, data.at_ms);
    this.show(data);
    if (name === "end") this.finish(data);
  }

  // A token's text is as many characters as the server says, which counts code points.
  show(data) {
    const output = $("output");
    const isAtEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 8;
    const characters = Array.from(data.text);
    let at = 0;
    data.text_lengths.forEach((length, i) => {
      this.counts[data.sources[i]] = (this.counts[data.sources[i]] || 0) + 1;
      if (length) this.append(characters.slice(at, at + length).join(""), data.sources[i]);
      at += length;
      this.last = data.sources[i];
    });
    // What was held back because it might have become a stop string belongs to the last token.
    if (at < characters.length) this.append(characters.slice(at).join(""), this.last);
    if (isAtEnd) output.scrollTop = output.scrollHeight;
    this.count();
  }

  append(text, source) {
    const span = document.createElement("span");
    span.className = `token ${source}`;
    span.textContent = text;
    span.title = source.replaceAll("_", "-");
    span.dataset.told = `${JSON.stringify(text)}: ${MEANING[source] || span.title}`;
    $("output").append(span);
  }

  count() {
    for (const [source, count] of Object.entries(this.counts)) {
      if (!$(`num-${source}`)) this.explain(source);
      $(`num-${source}`).textContent = count;
    }
  }

  // A source that this page was not made for gets a place in the legend.
  explain(source) {
    const entry = document.createElement("li");
    const sample = document.createElement("span");
    const number = document.createElement("b");
    sample.className = `token ${source}`;
    sample.textContent = source.replaceAll("_", "-");
    number.id = `num-${source}`;
    entry.append(sample, " ", number);
    $("legend").append(entry);
  }

  finish({ finish_reason, metrics }) {
    this.isOver = true;
    const seconds = metrics.e2e_ms / 1e3;
    const count = metrics.num_generated_tokens;
    const speed = seconds ? count / seconds : 0;
    const ends = { stop: "it ended by itself", length: "the most that were asked for", abort: "it was cancelled" };
    $("summary").textContent = `${count} tokens in ${seconds.toFixed(2)} s: ${ends[finish_reason] || finish_reason}.`;
    const share = (part, whole) => (whole ? `${part} / ${whole}  (${Math.round((100 * part) / whole)} %)` : "–");
    const numRuns = metrics.num_branch_hits + metrics.num_branch_misses; // that could have begun with a branch
    this.figures([
      ["speed", `${speed.toFixed(1)} tokens/s`],
      ["first token", `${metrics.ttft_ms.toFixed(0)} ms`],
      ["mode, rule", `${metrics.mode}, ${metrics.rule}`],
      ["length policy", metrics.length_policy],
      ["accepted / tested", share(metrics.num_accepted_tokens, metrics.num_tested_tokens)],
      ["tokens a draft", metrics.num_drafts ? metrics.mean_accepted_length.toFixed(2) : "–"],
      ...(numRuns ? [["branch hits", share(metrics.num_branch_hits, numRuns)]] : []),
      ["overlap", metrics.draft_ms ? `${Math.round(100 * metrics.overlap_share)} %` : "–"],
      ["target passes", metrics.num_target_passes],
      ["wasted drafts", `${metrics.num_wasted_tokens} tokens`],
      ["fallbacks", Object.entries(metrics.fallbacks).map(([why, times]) => `${why} ${times}`).join(", ") || "none"],
    ]);
    this.timeline.finish(metrics);
    this.offerTrace();
  }

  figures(pairs) {
    $("figures").replaceChildren(...pairs.map(([name, value]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      const told = document.createElement("dd");
      term.textContent = name;
      told.textContent = value;
      row.append(term, told);
      return row;
    }));
  }

  fail(message) {
    this.isOver = true;
    $("error").textContent = message;
    $("error").hidden = false;
    $("summary").textContent = "";
    this.timeline.end("The request failed.");
    this.offerTrace();
  }

  // By the reader, which is no error.
  stopped() {
    const count = Object.values(this.counts).reduce((sum, each) => sum + each, 0);
    $("summary").textContent = `Stopped after ${count} tokens.`;
    this.timeline.end("The request was stopped.");
    this.offerTrace();
  }

  offerTrace() {
    $("trace-row").hidden = !this.requestId;
  }

  // By a call of our own and not as a link, since a link would not send the key.
  async saveTrace() {
    try {
      const response = await fetch(`/paceline/traces/${encodeURIComponent(this.requestId)}`, { headers: key.headers() });
      if (!response.ok) throw new Error(await reason(response));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await response.blob());
      link.download = `paceline-${this.requestId}.json`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      $("error").textContent = `The trace cannot be had: ${error.message}`;
      $("error").hidden = false;
    }
  }
}
