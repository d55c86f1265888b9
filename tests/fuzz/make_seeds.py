"""Makes ``tests/fuzz/seeds``: one small, valid model or file of every format, to be mutated.

They are kept, so that fuzzing needs nothing that makes them; this is how they came to be. Run it in
the environment with MXNet, whose symbol it exports, when a format changes:

    rm -r tests/fuzz/seeds; .venv/bin/python tests/fuzz/make_seeds.py
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from bertrt.export.huggingface import import_huggingface

import bertrt
from bertrt.evaluation.quantize import quantize

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "graph")]
from conftest import HuggingFace  # noqa: E402

SEEDS = TESTS / "fuzz" / "seeds"
CONFIG = HuggingFace.config | {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 12,
    "max_position_embeddings": 12,
}
POOLING = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}


def main() -> None:
    SEEDS.mkdir()
    write = HuggingFace(SEEDS).write
    write(CONFIG, name="huggingface")
    sentence = write(
        CONFIG,
        name="sentence",
        pooling=POOLING,
        modules=HuggingFace.modules("Transformer", "Pooling", "Dense", "Normalize"),
        config_sentence_transformers={
            "prompts": {"query": "the "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        sentence_bert_config={"max_seq_length": 10, "do_lower_case": False},
        special_tokens_map={"unk_token": "[UNK]", "mask_token": {"content": "[MASK]"}},
        tokenizer_config={"do_lower_case": True, "model_max_length": 12, "cls_token": "[CLS]"},
    )
    (sentence / "Dense").mkdir()
    (sentence / "Dense" / "config.json").write_text(
        json.dumps(
            {
                "in_features": 8,
                "out_features": 4,
                "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            }
        )
    )
    random = np.random.default_rng(1)
    HuggingFace.write_safetensors(
        sentence / "Dense" / "model.safetensors",
        {
            "linear.weight": random.normal(0, 0.4, (4, 8)).astype(np.float32),
            "linear.bias": np.zeros(4, np.float32),
        },
    )
    classes = CONFIG | {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "no", "1": "yes"},
        "label2id": {"no": 0, "yes": 1},
    }
    torch = write(classes, HuggingFace.weights(classes, classes=2), name="torch")
    (torch / "model.safetensors").unlink()
    HuggingFace.write_torch(torch / "pytorch_model.bin", HuggingFace.weights(classes, classes=2))
    tagger = CONFIG | {
        "architectures": ["BertForTokenClassification"],
        "id2label": {"0": "O", "1": "B-X", "2": "I-X"},
    }
    weights = HuggingFace.weights(tagger, pooler=False, classes=3)
    write_tokenizer(write(tagger, weights, name="tagger", vocab=False))
    import_huggingface(SEEDS / "tagger", SEEDS / "bundle")
    import_huggingface(sentence, SEEDS / "sentence_bundle")
    quantize(SEEDS / "sentence_bundle", SEEDS / "quantized_bundle")
    byte_pairs(SEEDS / "roberta")
    pieces(SEEDS / "xlmr")
    gluon(SEEDS)
    for name in ("dynamo18_tagger", "dynamic_int8", "script14_mean"):
        (SEEDS / "onnx").mkdir(exist_ok=True)
        shutil.copy(TESTS / "data" / "onnx" / f"{name}.onnx", SEEDS / "onnx")
    tensors = json.loads((TESTS / "data" / "torch_files.json").read_text())["tensors"]
    for name, content in tensors.items():
        (SEEDS / "torch_files").mkdir(exist_ok=True)
        (SEEDS / "torch_files" / f"{name.replace(' ', '_')}.bin").write_bytes(
            base64.b64decode(content)
        )
    data(SEEDS / "data")
    for path in sorted(SEEDS.iterdir()):
        if path.name not in ("onnx", "torch_files", "data"):
            model = path / "model-symbol.json" if path.name == "symbol" else path
            with bertrt.Engine.load(model, threads=1) as engine:
                engine.run([[5, 6, 7]])
    print(sum(path.stat().st_size for path in SEEDS.rglob("*")) >> 10, "KiB")


def data(directory: Path) -> None:
    """Labelled data, a file a kind."""
    answer = {"text": "boat", "answer_start": 4}
    question = {"id": "1", "question": "What?", "answers": [answer], "is_impossible": False}
    paragraph = {"context": "the boat", "qas": [question]}
    squad = {"version": "v2.0", "data": [{"title": "sea", "paragraphs": [paragraph]}]}
    files = {
        "pairs.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tthe boat\tthe sea\n"
        "0\t4\t5\tsea\tboat\n",
        "scores.csv": "news\tMSR\t2012\t1\t2.5\tthe boat\tthe sea\nnews\tMSR\t2012\t2\t5\ta\tb\n",
        "rows.jsonl": '{"text": "the boat", "label": "no"}\n{"text": "sea", "label": 1}\n',
        "squad.json": json.dumps(squad),
        "words.conll": "the O\nboat B-X\n\nsea I-X\n",
        "texts.txt": "the boat\nthe sea\n",
    }
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text)


def write_tokenizer(directory: Path) -> None:
    """A ``tokenizer.json``, of the words of all seeds."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {word: index for index, word in enumerate(HuggingFace.words)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.add_special_tokens(list(HuggingFace.words[:5]))
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "[MASK]"})
    )


def byte_pairs(directory: Path) -> None:
    """A RoBERTa directory with GPT-2's kind of vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    tokens += [*map("".join, merges), "<mask>"]
    config = CONFIG | {
        "architectures": ["RobertaModel"],
        "model_type": "roberta",
        "vocab_size": len(tokens),
        "pad_token_id": 1,
        "type_vocab_size": 1,
    }
    HuggingFace(directory.parent).write(config, name=directory.name, vocab=False)
    (directory / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(tokens)}))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))


def pieces(directory: Path) -> None:
    """An XLM-RoBERTa directory with a SentencePiece model."""
    import sentencepiece

    with tempfile.TemporaryFile() as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the boats at sea", "the cafe"] * 9),
            model_writer=file,
            vocab_size=24,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            normalization_rule_name="identity",
        )
        file.seek(0)
        model = file.read()
    config = CONFIG | {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "vocab_size": 30,
        "pad_token_id": 1,
        "type_vocab_size": 1,
    }
    HuggingFace(directory.parent).write(config, name=directory.name, vocab=False)
    (directory / "sentencepiece.bpe.model").write_bytes(model)


def gluon(seeds: Path) -> None:
    """A symbol pair, and the bundle of it, with a vocabulary of GluonNLP's."""
    import gluonnlp
    import mxnet as mx
    from bertrt.export import export_model
    from gluonnlp.model.bert import BERTEncoder, BERTModel

    options = {"num_layers": 1, "units": 8, "hidden_size": 12, "max_length": 12, "num_heads": 2}
    net = BERTModel(
        BERTEncoder(**options, dropout=0.0),
        vocab_size=12,
        token_type_vocab_size=2,
        units=8,
        embed_size=8,
        use_classifier=False,
        use_decoder=True,
    )
    mx.random.seed(0)
    net.initialize(mx.init.Normal(0.3))
    tokens = [*HuggingFace.words, "red"]
    vocab = gluonnlp.vocab.BERTVocab(gluonnlp.data.count_tokens(tokens[5:]))
    with tempfile.TemporaryDirectory() as directory:
        export_model(net, Path(directory) / "out", vocab=vocab, max_length=12, task="fill-mask")
        shutil.copytree(Path(directory) / "out", seeds / "gluon_bundle")
    (seeds / "symbol").mkdir()
    for name in ("model-symbol.json", "model-0000.params"):
        shutil.copy(seeds / "gluon_bundle" / name, seeds / "symbol" / name)


if __name__ == "__main__":
    main()
