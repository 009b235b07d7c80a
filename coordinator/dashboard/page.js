// The page's entry: the key, the zoom, and the parts.
import { Playground } from "./playground.js";
import { Pools } from "./pools.js";
import { $ } from "./shared.js";
import { Timeline } from "./timeline.js";

$("key").addEventListener("input", () => sessionStorage.setItem("key", $("key").value.trim()));
const timeline = new Timeline($("chart"), $("scroll"), $("chart-told"));
for (const choice of document.querySelectorAll("input[name=zoom]")) {
  choice.addEventListener("change", () => timeline.zoom(Number(choice.value)));
}
new Playground(timeline);
new Pools().start();
