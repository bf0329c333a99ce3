"""POST /v1/decisions: questions with given answers, answered by the model's own probabilities."""
