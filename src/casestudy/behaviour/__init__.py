"""The question and its prompts: contrasts, token classes, roles, counterfactuals."""
