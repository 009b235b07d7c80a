// The workers as they are, asked again every two seconds while somebody looks.
import { $, key, reason } from "./shared.js";

const PERIOD_MS = 2000;

const number = (value, digits, unit) => (value === null ? "–" : `${value.toFixed(digits)} ${unit}`);

export class Pools {
  start() {
    this.poll();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.poll(); });
  }

  async poll() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      const response = await fetch("/paceline/pools", { headers: key.headers() });
      if (response.status === 401) key.ask();
      if (!response.ok) throw new Error(await reason(response));
      this.show(await response.json());
    } catch (error) {
      this.say("bad", error instanceof TypeError ? "the server does not answer" : error.message);
    }
    this.timer = setTimeout(() => this.poll(), PERIOD_MS);
  }

  show(server) {
    $("model").textContent = server.model;
    $("chat-row").hidden = !server.has_chat_template;
    if (!this.isKnown) this.learn(server);
    const count = (role) => server.workers.filter((worker) => worker.role === role).length;
    const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
    if (count("verifier")) this.say("good", `ready: ${plural(count("verifier"), "verifier")}, ${plural(count("drafter"), "drafter")}`);
    else this.say("bad", "no verifier is connected");
    $("load").textContent = `${server.num_requests_running} running, ${server.num_requests_waiting} waiting. ` +
      `Context ${server.max_model_len} tokens. Defaults: ${server.defaults.mode}, ${server.defaults.length_policy}, ` +
      `window ${server.defaults.window}.`;
    $("workers").replaceChildren(...server.workers.map((worker) => this.card(worker)));
  }

  // Once: what the form offers depends on the server.
  learn(server) {
    this.isKnown = true;
    $("chat").checked = server.has_chat_template;
    for (const [id, names] of [["mode", server.modes], ["rule", server.rules]]) {
      $(id).append(...names.map((name) => new Option(name)));
    }
  }

  say(kind, text) {
    const state = $("state");
    state.className = `state ${kind}`;
    if (state.textContent !== text) state.textContent = text;
  }

  card(worker) {
    const card = document.createElement("li");
    card.className = worker.role;
    const name = document.createElement("h3");
    name.textContent = worker.name;
    const what = document.createElement("p");
    what.textContent = `${worker.model}, ${worker.dtype} on ${worker.device}`;
    const figures = document.createElement("dl");
    const isDrafter = worker.role === "drafter";
    figures.append(
      this.figure("requests", `${worker.num_requests} / ${worker.max_num_seqs}`, worker.num_requests / worker.max_num_seqs),
      this.figure("speed", number(worker.tokens_per_s, 0, "tokens/s")),
      this.figure(isDrafter ? "a draft" : "a pass", number(worker.step_ms, 1, "ms")),
      this.figure("round trip", number(worker.round_trip_ms, 1, "ms")),
    );
    if (isDrafter) {
      const acceptance = worker.acceptance;
      figures.append(this.figure("accepted", number(acceptance === null ? null : 100 * acceptance, 0, "%"), acceptance));
    } else {
      figures.append(this.figure("committed", `${worker.num_tokens} tokens`));
      if (worker.cache) {
        const share = worker.cache.num_used_tokens / worker.cache.num_tokens;
        figures.append(this.figure("KV cache", `${Math.round(100 * share)} % of ${worker.cache.num_tokens.toLocaleString("en")}`, share));
      }
    }
    card.append(name, what, figures);
    return card;
  }

  figure(name, value, share = null) {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const told = document.createElement("dd");
    term.textContent = name;
    told.textContent = value;
    row.append(term, told);
    if (share !== null) {
      const meter = document.createElement("meter");
      meter.value = share;
      meter.setAttribute("aria-label", `${name}: ${value}`);
      row.append(meter);
    }
    return row;
  }
}
