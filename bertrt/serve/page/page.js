// The page: asks /stats once a second and draws it.

import { $, bytes, duration, make, milliseconds, number, say } from "./basics.js";
import { showPlots } from "./plots.js";
import { Told, ask, hasKey, useKey } from "./server.js";
import { choices, offer, showCurl } from "./tryout.js";

// --- what it tells --------------------------------------------------------------------------------

const STATES = {
  ready: ["Ready", "good"],
  loading: ["Loading models", "warn"],
  draining: ["Draining: it takes no new requests and is about to stop", "warn"],
  key: ["API key needed", "warn"],
  gone: ["Gone: the server does not answer", "bad"],
  trouble: ["In trouble", "bad"],
};

function showState(name) {
  const [text, kind] = STATES[name];
  say($("state"), text);
  $("state").className = `pill ${kind}`;
  document.title = name === "ready" ? "bertrt" : `${text.split(":")[0]} · bertrt`;
}

function showTrouble(text) {
  $("trouble").hidden = !text;
  say($("trouble"), text);
}

function showKey(wanted) {
  if (wanted && $("key").hidden) {
    $("key").hidden = false;
    $("key-text").focus();
  }
  if (!wanted) $("key").hidden = true;
  $("forget").hidden = wanted || !hasKey();
}

let asking = false;
let timer = 0;

async function refresh() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  try {
    const model = $("plots-model").value;
    const stats = await ask(`stats${model ? `?model=${encodeURIComponent(model)}` : ""}`);
    showKey(false);
    showTrouble("");
    showState(stats.state);
    await showModels(stats);
    showNow(stats);
    showPlots(stats);
  } catch (error) {
    await showFailure(error);
  } finally {
    asking = false;
    timer = setTimeout(refresh, 1000);
  }
}

async function showFailure(error) {
  if (!(error instanceof Told)) {
    // What comes back may be another server.
    known = "";
    showState("gone");
    return;
  }
  if (error.status === 401) {
    showState("key");
    showTrouble(hasKey() ? `The server does not take this key: ${error.message}.` : "");
    showKey(true);
    return;
  }
  if (error.status === 404) $("plots-model").value = "";
  if (error.status === 503) {
    try {
      const said = (await (await fetch("health/ready", { cache: "no-store" })).text()).trim();
      if (said in STATES) {
        showState(said);
        return;
      }
    } catch {
      showState("gone");
      return;
    }
  }
  showState("trouble");
  showTrouble(`The server says: ${error.message}.`);
}

function showNow(stats) {
  const minute = stats.minute;
  const seconds = Math.min(60, Math.max(1, stats.uptime));
  say($("version"), stats.version);
  say($("uptime"), `up ${duration(stats.uptime)}`);
  for (const name of ["p50", "p95", "p99"]) say($(`tile-${name}`), milliseconds(minute[name]));
  say($("tile-requests"), `${number(minute.requests / seconds)}/s`);
  say($("tile-tokens"), `${number(minute.tokens / seconds)}/s`);
  const share = 100 * minute.failed / Math.max(1, minute.requests);
  say($("tile-failed"), minute.failed ? `${number(share)}%` : "0");
  $("box-failed").className = minute.failed ? "trouble" : "";
  say($("tile-waiting"), number(stats.models.reduce((sum, model) => sum + model.waiting, 0)));
  say($("tile-cached"), minute.inputs ? `${Math.round(100 * minute.cached / minute.inputs)}%` : "–");
}

// --- models ---------------------------------------------------------------------------------------

let known = "";
const cards = new Map();

async function showModels(stats) {
  const now = JSON.stringify(stats.models.map((model) => [model.name, model.state]));
  if (now !== known) {
    const { models } = await ask("models");
    known = now;
    cards.clear();
    $("models").replaceChildren(...models.map(card));
    if (!models.length) $("models").append(make("p", { className: "muted", textContent: "No model is known." }));
    choices($("plots-model"), [["", "all models"], ...models.map(({ name }) => [name, name])]);
    offer(models.filter(({ state, task }) => state === "READY" && task));
  }
  for (const model of stats.models) update(model, stats.uptime);
}

function fact(list, title, value = "") {
  const place = make("dd", { textContent: value });
  list.append(make("dt", { textContent: title }), place);
  return place;
}

function card(model) {
  const facts = make("dl", { className: "facts" });
  const kind = { READY: "good", LOADING: "warn" }[model.state] ?? "bad";
  const made = make("article", { className: "card model" },
    make("div", { className: "row between" },
      make("h3", { textContent: model.name }),
      make("span", { className: `pill ${kind}`, textContent: model.state.toLowerCase() })),
    facts);
  made.dataset.model = model.name;
  if (model.reason) fact(facts, "Reason", model.reason);
  if (model.state !== "READY") return made;
  fact(facts, "Task", model.task ?? "none: a bare graph");
  if (model.labels) {
    const more = model.labels.length - 12;
    fact(facts, "Labels", model.labels.slice(0, 12).join(", ") + (more > 0 ? `, and ${more} more` : ""));
  }
  fact(facts, "Runs on", `${model.device}, ${model.precision}, ${model.provider}, ${model.threads} ${model.threads === 1 ? "thread" : "threads"}`);
  fact(facts, "Max length", `${model.max_length} tokens`);
  const bars = make("div", { className: "batches", role: "img" });
  cards.set(model.name, {
    latency: fact(facts, "Latency"),
    load: fact(facts, "Load"),
    queue: fact(facts, "Queue"),
    batch: fact(facts, "Batches"),
    cache: fact(facts, "Cache"),
    bars,
  });
  made.append(bars, make("p", { className: "muted row between axis", ariaHidden: "true" },
    make("span", { textContent: "1" }), make("span", { textContent: "batches by tokens" }), make("span")));
  return made;
}

function update(model, uptime) {
  const place = cards.get(model.name);
  if (!place) return;
  const { minute, batches } = model;
  const seconds = Math.min(60, Math.max(1, uptime));
  say(place.latency, minute.requests ? `${milliseconds(minute.p50)}, 95% within ${milliseconds(minute.p95)}` : "not asked in the last minute");
  say(place.load, `${number(minute.requests / seconds)} requests/s, ${number(minute.tokens / seconds)} tokens/s`);
  say(place.queue, `${number(model.waiting)} waiting, ${minute.queue === null ? "no wait" : `${milliseconds(minute.queue)} mean wait`}`);
  const mean = (sum) => number(sum / batches.count);
  say(place.batch, batches.count ? `${mean(batches.sequences)} inputs, ${mean(batches.tokens)} tokens on average` : "none yet");
  const share = minute.inputs ? `, ${Math.round(100 * minute.cached / minute.inputs)}% hits` : "";
  say(place.cache, `${bytes(model.cache_bytes)}${share}`);
  const sizes = Object.entries(batches.by_tokens).map(([size, count]) => [Number(size), count]).sort((a, b) => a[0] - b[0]);
  place.bars.hidden = place.bars.nextSibling.hidden = !sizes.length;
  if (!sizes.length) return;
  const most = Math.max(...sizes.map(([, count]) => count));
  const all = [];
  for (let size = 1; size <= Math.max(4096, sizes.at(-1)[0]); size *= 2) all.push([size, batches.by_tokens[size] ?? 0]);
  say(place.bars.nextSibling.lastChild, String(all.at(-1)[0]));
  while (place.bars.children.length < all.length) place.bars.append(make("i"));
  all.forEach(([size, count], i) => {
    const bar = place.bars.children[i];
    bar.style.height = `${100 * count / most}%`;
    bar.title = `up to ${size} tokens: ${count} batches`;
  });
  place.bars.setAttribute("aria-label", `Batches by tokens: ${sizes.map(([size, count]) => `${count} up to ${size}`).join(", ")}`);
}

// --- at work --------------------------------------------------------------------------------------

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key-text").value.trim());
  $("key-text").value = "";
  showCurl();
  refresh();
});
$("forget").addEventListener("click", () => {
  useKey("");
  known = "";
  showCurl();
  refresh();
});
$("plots-model").addEventListener("change", refresh);
document.addEventListener("visibilitychange", refresh);
refresh();
