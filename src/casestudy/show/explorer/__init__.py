"""A live page to try prompts on a model before there is a study.

A user types a prompt, or a clean and a corrupted prompt. The panels are sections of the report,
made of the measurements that a study makes. `page_state` parses a request, `questions` runs the
model for it, `worker` lets one request at a time use the model, `panels` and `patches` turn results
into figures, `study_prompts` lists the prompts of a study, `guard` refuses requests that do not
come from this page, `app` maps addresses to answers and `server` listens.

Nothing here imports torch or the web framework before the explorer is served.
"""
