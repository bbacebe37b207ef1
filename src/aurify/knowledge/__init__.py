"""A knowledge base: documents in, the right passages out, and procedures to follow."""
