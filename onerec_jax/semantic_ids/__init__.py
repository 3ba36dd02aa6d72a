"""Semantic IDs: quantizers, vocabulary, prefix trie and quality figures."""
