"""Vocabulary: a base tokenizer is continued into a language, and a model is given the rows for it."""
