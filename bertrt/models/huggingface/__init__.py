"""Hugging Face and sentence-transformers directories, read without any of their packages."""
