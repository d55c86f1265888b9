// The try-out: a request made by hand, and its answer as the task has it.

import { $, make, milliseconds, say } from "./basics.js";
import { Told, ask, hasKey } from "./server.js";

let models = [];

// Offer these models.
export function offer(answering) {
  models = answering;
  const before = $("try-model").value;
  choices($("try-model"), models.map(({ name, task }) => [name, `${name} (${task})`]));
  if ($("try-model").value !== before) showFields();
  $("try-send").disabled = !models.length;
}

// Put options into a select, which keeps its value where that is still there.
export function choices(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  if (options.some(([value]) => value === before)) select.value = before;
}

const TWO = [["text", "Text", "The film was a delight."], ["second", "Second text (for a model of pairs; else leave it empty)", ""]];
const FIELDS = {
  classification: TWO,
  regression: TWO,
  "next-sentence": [["text", "First text", "She opened the window."], ["second", "Second text", "Cold air came in."]],
  embedding: [["text", "Text", "A cat sleeps on the sofa."], ["second", "Compared with (may be empty)", "A kitten naps on the couch."]],
  "question-answering": [["text", "Question", "Where do the boats lie?"], ["second", "Context", "The boats lie in the harbour, and the sea is calm."]],
  tagging: [["text", "Text", "Ada Lovelace lived in London."], ["words", "It is a list of words, one a line"]],
  "fill-mask": [["text", "Text with one [MASK] or more", "The boat is on the [MASK]."]],
};

const chosen = () => models.find(({ name }) => name === $("try-model").value);

function showFields() {
  const model = chosen();
  const fields = FIELDS[model?.task] ?? [["text", "Text", ""]];
  $("try-fields").replaceChildren(...fields.flatMap(([name, title, text]) => {
    const id = `try-${name}`;
    if (name === "words") {
      return [make("label", { className: "check" }, make("input", { type: "checkbox", id }), title)];
    }
    return [make("label", { htmlFor: id, textContent: title }), make("textarea", { id, value: text, rows: 2, spellcheck: false })];
  }));
  showCurl();
}

// The batch of the request, as its task has it.
function batch(task) {
  const text = $("try-text")?.value ?? "";
  const second = $("try-second")?.value ?? "";
  if (task === "embedding") return second ? [text, second] : [text];
  if (task === "tagging" && $("try-words").checked) return [text.split("\n").map((word) => word.trim()).filter(Boolean)];
  if (["question-answering", "next-sentence"].includes(task) || second) return [[text, second]];
  return [text];
}

const place = (model) => `models/${encodeURIComponent(model.name)}/predict`;

export function showCurl() {
  const model = chosen();
  if (!model) {
    say($("curl"), "");
    return;
  }
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const lines = [
    `curl ${quoted(new URL(place(model), document.baseURI).href)}`,
    ...(hasKey() ? [`-H "Authorization: Bearer $BERTRT_API_KEY"`] : []),
    "-H 'Content-Type: application/json'",
    `-d ${quoted(JSON.stringify({ batch: batch(model.task) }))}`,
  ];
  say($("curl"), lines.join(" \\\n  "));
}

async function send() {
  const model = chosen();
  if (!model || $("try-send").disabled) return;
  const asked = batch(model.task);
  $("try-send").disabled = true;
  $("try-answer").setAttribute("aria-busy", "true");
  const begun = performance.now();
  try {
    const answer = await ask(place(model), { batch: asked });
    const took = performance.now() - begun;
    $("try-answer").replaceChildren(...shown(model, asked, answer.results));
    const cut = answer.results.some((result) => result.truncated);
    say($("try-took"), `${milliseconds(took)} there and back, ${answer.tokens} tokens${cut ? "; the text is longer than the model takes, and was cut" : ""}`);
  } catch (error) {
    const text = error instanceof Told ? error.message : "the server does not answer";
    $("try-answer").replaceChildren(make("p", { className: "alert", role: "alert", textContent: text }));
    say($("try-took"), "");
  } finally {
    $("try-answer").removeAttribute("aria-busy");
    $("try-send").disabled = false;
  }
}

function shown(model, asked, results) {
  const result = results[0];
  switch (model.task) {
    case "classification":
      return [big(result.label), bars(Object.entries(result.scores).sort((a, b) => b[1] - a[1]))];
    case "regression":
      return [big(String(result.score))];
    case "next-sentence":
      return [big(result.is_next ? "It follows" : "It does not follow"), bars([["follows", result.score]])];
    case "question-answering":
      return [
        big(result.text || "The context has no answer."),
        marked(asked[0][1], result.end > result.start ? [[result.start, result.end, "", 0]] : []),
        bars(result.nbest.slice(0, 5).map((span) => [span.text || "(none)", span.score])),
      ];
    case "tagging":
      return tagged(asked[0], result);
    case "fill-mask":
      return masks(result.candidates);
    case "embedding":
      return embedded(results);
    default:
      return [make("pre", { textContent: JSON.stringify(result, null, 1) })];
  }
}

const big = (text) => make("p", { className: "big", textContent: text });

function bars(scores) {
  const made = make("div", { className: "bars", role: "list" });
  // Scores beyond 0 and 1 are no probabilities: the longest bar is the greatest of them.
  const most = Math.max(1, ...scores.map(([, score]) => Math.abs(score)));
  for (const [name, score] of scores.slice(0, 50)) {
    const fill = make("div", { className: "fill" });
    fill.style.width = `${100 * Math.max(0, score) / most}%`;
    const title = make("span", { className: "name", textContent: name, role: "listitem" });
    made.append(title, make("div", { className: "track", ariaHidden: "true" }, fill), make("span", { textContent: score.toFixed(4) }));
  }
  return made;
}

// A text with places in it, which are counted in code points: [start, end, label, colour].
function marked(text, places) {
  const points = Array.from(text);
  const made = make("p", { className: "quote" });
  let upto = 0;
  for (const [start, end, label, colour] of places) {
    made.append(points.slice(upto, start).join(""));
    const mark = make("mark", { className: `e${colour}`, textContent: points.slice(start, end).join("") });
    if (label) mark.append(make("small", { textContent: label }));
    made.append(mark);
    upto = end;
  }
  made.append(points.slice(upto).join(""));
  return made;
}

function tagged(asked, result) {
  const text = Array.isArray(asked) ? asked.join(" ") : asked;
  const labels = [...new Set(result.entities.map(({ label }) => label))];
  const words = make("ul", { className: "words", ariaLabel: "The words and their tags" });
  result.words.forEach((word, i) => {
    words.append(make("li", { title: result.scores[i].toFixed(4) }, word, make("small", { textContent: result.tags[i] })));
  });
  return [
    result.entities.length ? marked(text, result.entities.map(({ start, end, label }) => [start, end, label, labels.indexOf(label) % 6])) : make("p", { className: "muted", textContent: "No entities." }),
    words,
  ];
}

function masks(candidates) {
  const count = Math.max(0, ...candidates.map(({ mask }) => mask + 1));
  return Array.from({ length: count }, (_, mask) => make("div", {},
    make("p", { className: "muted", textContent: count > 1 ? `Mask ${mask + 1}` : "The mask" }),
    bars(candidates.filter((each) => each.mask === mask).map(({ token, score }) => [token, score]))));
}

function embedded(results) {
  const vectors = results.map(({ vector }) => vector);
  const nested = Array.isArray(vectors[0][0]);
  const first = nested ? vectors[0][0] : vectors[0];
  const made = [];
  if (vectors.length === 2 && !nested) {
    const how = results[0].similarity ?? "cosine";
    const value = SIMILARITIES[how](...vectors);
    made.push(big(`${how} ${value.toFixed(4)}`));
    if (how === "cosine") made.push(bars([["similarity", value]]));
  }
  made.push(make("p", { className: "muted", textContent: `${nested ? `${vectors[0].length} × ` : ""}${first.length} values; the first of the text's${nested ? " first token" : ""}:` }));
  made.push(make("pre", { textContent: first.slice(0, 8).map((value) => value.toFixed(5)).join("  ") }));
  return made;
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const SIMILARITIES = {
  cosine: (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)),
  dot,
  euclidean: (a, b) => -Math.hypot(...a.map((value, i) => value - b[i])),
  manhattan: (a, b) => -a.reduce((sum, value, i) => sum + Math.abs(value - b[i]), 0),
};

$("try-form").addEventListener("input", (event) => {
  if (event.target === $("try-model")) showFields();
  else showCurl();
});
$("try-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("try-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
});
$("curl-copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    say($("curl-copy"), "Copied");
  } catch {
    // Not over plain HTTP from elsewhere: mark it, to be copied by hand.
    getSelection().selectAllChildren($("curl"));
    say($("curl-copy"), "Marked");
  }
  setTimeout(() => say($("curl-copy"), "Copy"), 1500);
});
