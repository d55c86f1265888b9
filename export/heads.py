"""The heads of GluonNLP's scripts, which its package does not hold.

Structure and parameter names are those of scripts/bert/model/qa.py and scripts/bert/model/ner.py,
so that the files which those scripts save are read.
"""

from __future__ import annotations

from typing import Any

from .gluon_to_symbol import import_gluon

__all__ = ["bert_for_qa", "bert_tagger"]


def bert_for_qa(bert: Any) -> Any:
    """A ``BertForQA`` over a ``BERTModel`` that returns its sequence output alone: two logits for
    each token, (batch, seq, 2)."""
    mxnet, _ = import_gluon()

    class BertForQA(mxnet.gluon.HybridBlock):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert
            with self.name_scope():
                self.span_classifier = mxnet.gluon.nn.Dense(2, flatten=False)

        def hybrid_forward(self, _: Any, inputs: Any, token_types: Any, valid_length: Any) -> Any:
            return self.span_classifier(self.bert(inputs, token_types, valid_length))

    return BertForQA()


def bert_tagger(bert: Any, classes: int) -> Any:
    """A ``BERTTagger`` over a ``BERTModel`` that returns its sequence output alone: `classes`
    logits for each token, (batch, seq, classes)."""
    mxnet, _ = import_gluon()

    class BERTTagger(mxnet.gluon.HybridBlock):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.bert_model = bert
            with self.name_scope():
                self.tag_classifier = mxnet.gluon.nn.Dense(classes, flatten=False)

        def hybrid_forward(self, _: Any, inputs: Any, token_types: Any, valid_length: Any) -> Any:
            return self.tag_classifier(self.bert_model(inputs, token_types, valid_length))

    return BERTTagger()
