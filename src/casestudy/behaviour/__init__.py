"""What is asked of a model: prompts, contrasts, classes, roles, counterfactuals."""
