// Who worked when: a lane for the drafter, one for the verifier, one for when both did, and the tokens as they came.
// Drafts for outcomes that have not happened yet (is_branch) have a lane of their own, there once one has come.
// Everything stands in milliseconds inside one group, so that zooming is one change of its scale.
import { Picker } from "./picker.js";
import { $ } from "./shared.js";

const NS = "http://www.w3.org/2000/svg";
const LANE = 36, BAR = 24, TOP = 20;
const ROW = { drafter: 0, verifier: 1, both: 2, tokens: 3, branch: 4 };
const MAX_STACK = 8, TOKEN_HEIGHT = 5; // tokens of one answer, one above the other
const MAX_TICKS = 400, TICK_PX = 80;

function make(name, attributes) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export class Timeline {
  constructor(chart, scroll, told) {
    this.chart = chart;
    this.scroll = scroll;
    this.told = told;
    this.acrossMs = 0; // 0 = all of it
    this.picker = new Picker(scroll, "rect", $("bar-told"));
    new ResizeObserver(() => this.lay()).observe(scroll);
    this.clear("Nothing has run yet.");
  }

  clear(told) {
    this.picker.clear();
    this.endMs = 1;
    this.spans = { drafter: [], verifier: [] };
    this.numLanes = 4;
    $("branch-lane").hidden = true;
    this.ticks = make("g", {});
    this.marks = make("g", {});
    this.chart.replaceChildren(this.ticks, this.marks);
    this.told.textContent = told;
    this.lay();
  }

  zoom(acrossMs) {
    this.acrossMs = acrossMs;
    this.lay();
  }

  add(spans, sources, atMs) {
    for (const span of spans) this.addSpan(span);
    sources.slice(0, MAX_STACK * 2).forEach((source, i) => {
      const y = TOP + ROW.tokens * LANE + (i % MAX_STACK) * TOKEN_HEIGHT;
      this.marks.append(make("line", { x1: atMs, x2: atMs, y1: y, y2: y + TOKEN_HEIGHT - 1, class: `token ${source}` }));
    });
    this.endMs = Math.max(this.endMs, atMs);
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.lay(); });
  }

  addSpan(span) {
    if (span.is_branch) {
      this.numLanes = 5;
      $("branch-lane").hidden = false;
    }
    const lane = span.is_branch ? "branch" : span.role;
    this.bar(lane, span.start_ms, span.end_ms, `${lane}: ${span.num_tokens} token${span.num_tokens === 1 ? "" : "s"}, `);
    this.spans[span.role].push(span);
    // Only the last few of the other lane can still overlap this one.
    for (const other of this.spans[span.role === "drafter" ? "verifier" : "drafter"].slice(-16)) {
      const start = Math.max(span.start_ms, other.start_ms);
      const end = Math.min(span.end_ms, other.end_ms);
      if (end > start) this.bar("both", start, end, "both at work: ");
    }
  }

  bar(lane, startMs, endMs, what) {
    const start = Math.max(0, startMs);
    const rect = make("rect", { x: start, y: TOP + ROW[lane] * LANE, width: endMs - start, height: BAR, class: lane });
    const title = make("title", {});
    title.textContent = rect.dataset.told = `${what}${(endMs - startMs).toFixed(1)} ms, from ${start.toFixed(0)} ms on`;
    rect.append(title);
    this.marks.append(rect);
    this.endMs = Math.max(this.endMs, endMs);
  }

  // Set the scale, and the ticks that fit it.
  lay() {
    const width = Math.max(this.scroll.clientWidth, 100);
    const scale = (width - 4) / (this.acrossMs || this.endMs);
    const total = Math.max(width, this.endMs * scale + 4);
    const isAtEnd = this.scroll.scrollLeft + this.scroll.clientWidth >= this.scroll.scrollWidth - 8;
    this.chart.setAttribute("width", this.acrossMs ? total : width);
    this.chart.setAttribute("height", TOP + this.numLanes * LANE + 8);
    this.marks.setAttribute("transform", `scale(${scale} 1)`);
    const least = Math.max(TICK_PX / scale, (total / scale) / MAX_TICKS);
    const power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map((times) => times * power).find((value) => value >= least);
    const ticks = [];
    for (let at = 0; at * scale < total; at += step) {
      ticks.push(make("line", { x1: at * scale, x2: at * scale, y1: TOP - 4, y2: TOP + this.numLanes * LANE, class: "tick" }));
      const label = make("text", { x: at * scale + 3, y: 12 });
      label.textContent = step >= 1000 ? `${at / 1000} s` : `${Number(at.toPrecision(6))} ms`;
      if (at * scale < total - 40) ticks.push(label);
    }
    this.ticks.replaceChildren(...ticks);
    if (isAtEnd && this.acrossMs) this.scroll.scrollLeft = this.scroll.scrollWidth;
  }

  // Nothing more comes; `told` says why.
  end(told) {
    this.lay();
    this.told.textContent = told;
  }

  finish(metrics) {
    const drafted = metrics.num_draft_tokens
      ? `drafting took ${metrics.draft_ms.toFixed(0)} ms, and during ${Math.round(100 * metrics.overlap_share)} % of it a ` +
        "verification ran as well"
      : "nothing was drafted";
    this.end(`The target's passes took ${metrics.verify_ms.toFixed(0)} ms; ${drafted}.`);
  }
}
