"""Retrieval over a corpus of documents: reading (`corpus`) and searching (`bm25`) documents."""
