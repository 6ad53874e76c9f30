"""What would the model say to this? A live page for trying hunches before there is a study.

Type a prompt, or a clean and a corrupted one; every panel is drawn by the report's own functions
from the measurements a study makes. `page_state` reads what a request asks, `questions` asks it of
the model, `worker` gives the one model to one request at a time, `panels` and `patches` put results
into figures, `study_prompts` offers a study's prompts, `guard` refuses what no page of ours would
send, `app` joins them and `server` listens.

Nothing here imports torch or the web framework until somebody serves.
"""
