// What a bar or a token is, told to fingers and keys as well as to a mouse that hovers: one is picked, by a tap or by the
// arrow keys, and a line below says what it is.
const NEAR_PX = 16; // a bar may be narrower than a finger

export class Picker {
  constructor(region, selector, told) {
    this.region = region;
    this.selector = selector;
    this.told = told;
    region.addEventListener("click", (event) => this.pick(this.nearest(event)));
    region.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.picked = null;
    this.told.textContent = "";
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...this.region.querySelectorAll(this.selector)];
    const at = all.indexOf(this.picked);
    const next = { ArrowRight: at + 1, ArrowLeft: at < 0 ? all.length - 1 : at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || !all.length) return;
    event.preventDefault();
    this.pick(all[Math.min(Math.max(next, 0), all.length - 1)]);
    this.picked.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  nearest(event) {
    const hit = event.target.closest(this.selector);
    if (hit) return hit;
    let found = null, least = NEAR_PX;
    for (const each of this.region.querySelectorAll(this.selector)) {
      const box = each.getBoundingClientRect();
      if (event.clientY < box.top || event.clientY > box.bottom) continue;
      const away = Math.max(box.left - event.clientX, event.clientX - box.right, 0);
      if (away < least) [found, least] = [each, away];
    }
    return found;
  }

  pick(element) {
    if (!element) return;
    this.picked?.classList.remove("picked");
    this.picked = element;
    element.classList.add("picked");
    this.told.textContent = element.dataset.told;
  }
}
