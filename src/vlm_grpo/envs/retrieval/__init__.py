"""Retrieval over a corpus of documents: how documents are read (`corpus`) and searched (`bm25`)."""
