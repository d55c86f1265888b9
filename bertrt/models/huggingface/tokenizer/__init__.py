"""The tokenizer of a Hugging Face directory: class, settings, vocabulary, all that decides ids."""
