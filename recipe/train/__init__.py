"""Train the adapter. An interrupted run resumes from its last checkpoint."""
