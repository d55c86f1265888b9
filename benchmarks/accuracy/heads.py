"""Fine-tunes all-MiniLM-L6-v2 in Gluon for question answering and for tagging; a bundle each.

    python benchmarks/accuracy/heads.py DATA OUT [squad | conll ...]

`bertrt finetune` is for texts; this is the same training with the nets and losses of GluonNLP's
scripts/bert/finetune_squad.py and scripts/ner, for small models to evaluate with. There is no
other SQuAD at hand than a part of the development data: its first articles train, the last four are
kept for evaluation, as OUT/squad.dev.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mxnet
import numpy as np
from bertrt.export.gluon_to_symbol import set_parameters, structural_parameters
from bertrt.export.heads import bert_for_qa, bert_tagger
from bertrt.export.huggingface import bert_arrays, gluon_bert
from bertrt.export.model import TokenizerFile, write_bundle
from bertrt.export.training.batches import Rows, epoch_batches
from bertrt.export.training.learner import Learner
from bertrt.export.training.recipe import DROPOUT, Recipe, learning_rate
from tqdm.auto import trange
from train import weights_directory

from bertrt.evaluation.datasets import read_examples
from bertrt.host.writing import write_text
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.tasks.settings import complete_settings
from bertrt.tasks.table import make_task
from bertrt.text.load import load_tokenizer

RECIPES = {
    "squad": Recipe(epochs=2, batch_size=16, learning_rate=5e-5, max_length=160),
    "conll": Recipe(epochs=3, batch_size=32, learning_rate=1e-4, max_length=200),
}
KEPT_ARTICLES = 4
# Of the questions that are left to train on: as many as train in some minutes.
QUESTIONS = 600
TAGS = ["O", *(f"{place}-{kind}" for kind in ("LOC", "MISC", "ORG", "PER") for place in "BIES")]


def main() -> None:
    if len(sys.argv) < 3 or not set(sys.argv[3:]) <= set(RECIPES):
        raise SystemExit("usage: python benchmarks/accuracy/heads.py DATA OUT [squad | conll ...]")
    data, out = map(Path, sys.argv[1:3])
    out.mkdir(exist_ok=True)
    for name in sys.argv[3:] or RECIPES:
        {"squad": train_squad, "conll": train_conll}[name](data, out)


def train_squad(data: Path, out: Path) -> None:
    recipe, task = RECIPES["squad"], "question-answering"
    content = json.loads((data / "squad-v1.1" / "dev-v1.1.part-a.json").read_text())
    articles = content["data"]
    for name, part in (("train", articles[:-KEPT_ARTICLES]), ("dev", articles[-KEPT_ARTICLES:])):
        write_text(out / f"squad.{name}.json", json.dumps({"version": "1.1", "data": part}))
    examples = read_examples(out / "squad.train.json", task)
    chosen = np.random.default_rng(recipe.seed).permutation(len(examples))[:QUESTIONS]
    examples = examples.take(sorted(chosen.tolist()))
    start = Start(task, recipe, bert_for_qa)
    requests, _ = start.task.encode(examples.texts, start.tokenizer)
    encodings, targets = [], []
    for request, answers in zip(requests, examples.labels, strict=True):
        context, answer = request.source, answers[0]
        stop = answer.start + len(answer.text)
        tokens = [
            index
            for index, (begin, end) in enumerate(context.pieces.spans)
            if begin < stop and end > answer.start
        ]
        for encoding, window in zip(request.sequences, context.windows, strict=True):
            inside = tokens and window.begin <= tokens[0] and tokens[-1] < window.end
            encodings.append(encoding)
            # A window without the answer points at [CLS].
            first, last = (tokens[0], tokens[-1]) if inside else (0, 0)
            shift = window.offset - window.begin if inside else 0
            targets.append((first + shift, last + shift))

    def loss(logits: Any, spans: Any) -> Any:
        scores = mxnet.nd.log_softmax(logits, axis=1)
        start_scores = scores[:, :, 0].pick(spans[:, 0])
        return -(start_scores + scores[:, :, 1].pick(spans[:, 1])) / 2

    start.train(Rows(encodings, np.array(targets, np.float32)), loss)
    start.export(out / "squad", examples)


def train_conll(data: Path, out: Path) -> None:
    recipe, task = RECIPES["conll"], "tagging"
    examples = read_examples(data / "conll2003" / "eng.train.3000", task)
    start = Start(task, recipe, lambda bert: bert_tagger(bert, len(TAGS)), TAGS)
    requests, _ = start.task.encode(examples.texts, start.tokenizer)
    # Only a word's first token has a tag; -1 for all others.
    targets = np.full((len(requests), recipe.max_length), -1, np.float32)
    for row, request, tags in zip(targets, requests, examples.labels, strict=True):
        tagged = request.source
        row[[tagged.before + own[0] for own in tagged.tokens]] = [TAGS.index(tag) for tag in tags]

    def loss(logits: Any, tags: Any) -> Any:
        tags = tags[:, : logits.shape[1]]
        there = tags >= 0
        scores = mxnet.nd.log_softmax(logits, axis=2).pick(mxnet.nd.maximum(tags, 0))
        return -(scores * there).sum(axis=1) / there.sum(axis=1)

    start.train(Rows([request.sequences[0] for request in requests], targets), loss)
    start.export(out / "conll", examples)


class Start:
    """MiniLM with a new head, and what a bundle of it needs."""

    def __init__(
        self,
        task: str,
        recipe: Recipe,
        head: Callable[[Any], Any],
        labels: list[str] | None = None,
    ) -> None:
        model = HuggingFaceModel.open(weights_directory())
        found = model.tokenizer
        self.recipe, self.name, self.labels = recipe, task, labels
        self.origin = dict(model.origin)
        self.file = TokenizerFile(
            "huggingface", found.to_json(), found.lower, recipe.max_length, found.vocab_size
        )
        with tempfile.TemporaryDirectory() as directory:
            self.tokenizer = load_tokenizer(self.file.write(Path(directory)), Path(directory))
        settings = complete_settings(None, task, recipe.max_length)
        rows = {"logits": "tokens"}
        self.task = make_task(task, labels=labels, pooling=None, settings=settings, rows=rows)
        self.net = head(gluon_bert(model, pooler=False, dropout=DROPOUT))
        prefix = "bert_model." if labels else "bert."
        arrays = {
            prefix + name: array
            for name, array in bert_arrays(model).items()
            if not name.startswith("pooler.")
        }
        random = np.random.default_rng(recipe.seed)
        for name, parameter in structural_parameters(self.net).items():
            if name not in arrays:
                shape = tuple(size or 384 for size in parameter.shape)
                arrays[name] = random.normal(0, 0.02, shape).astype(np.float32)
        set_parameters(self.net, arrays, "the weights")

    def train(self, rows: Rows, loss: Callable[[Any, Any], Any]) -> None:
        recipe = self.recipe
        learner = Learner(self.net, recipe, loss)
        per_epoch = -(-len(rows) // recipe.batch_size)
        total = recipe.epochs * per_epoch
        lengths, recent = rows.lengths, 0.0
        for step in (bar := trange(total, desc=self.name, unit="step")):
            epoch, at = divmod(step, per_epoch)
            if at == 0:
                batches = epoch_batches(lengths, recipe.batch_size, seed=recipe.seed, epoch=epoch)
            rate = learning_rate(recipe, step, total)
            found = learner.step([rows.batch(batches[at])], rate, seed=step)
            recent = found if step == 0 else 0.95 * recent + 0.05 * found
            bar.set_postfix(loss=f"{recent:.3f}")
        print(f"{self.name}: {len(rows)} sequences, {total} steps, loss {recent:.3f}", flush=True)

    def export(self, out: Path, examples: Any) -> None:
        write_bundle(
            self.net,
            out,
            tokenizer=self.file,
            task=self.name,
            labels=self.labels,
            pooling=None,
            origin=self.origin
            | {"finetuned": {"train": examples.path.name, "rows": len(examples)}},
        )
        print(out, flush=True)


if __name__ == "__main__":
    main()
