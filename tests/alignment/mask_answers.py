"""`python mask_answers.py TOKENIZER FOLDER`: masks of transformers' apply_chat_template (extra verify), for templates
with generation parts: FOLDER/answers.json has the trained stretches as text, FOLDER/ids.json ids and masks.
"""

import json
import sys
from pathlib import Path

from support.chat_templates import COMPARED, DIALOGUES, TEMPLATES


def main(tokenizer_directory: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    made: dict[str, dict[str, object]] = {}
    answers: dict[str, dict[str, list[str]]] = {}
    for name in (name for name in TEMPLATES if "tagged" in name):
        for said in COMPARED:
            found = tokenizer.apply_chat_template(
                DIALOGUES[said], chat_template=TEMPLATES[name], return_dict=True, return_assistant_tokens_mask=True
            )
            ids, mask = found["input_ids"], found["assistant_masks"]
            made.setdefault(name, {})[said] = {"ids": ids, "mask": mask}
            runs: list[list[int]] = []
            for place, (token, one) in enumerate(zip(ids, mask, strict=True)):
                if one and (place == 0 or not mask[place - 1]):
                    runs.append([])
                if one:
                    runs[-1].append(token)
            answers.setdefault(name, {})[said] = [tokenizer.decode(run, skip_special_tokens=False) for run in runs]
    (folder / "ids.json").write_text(json.dumps(made), encoding="utf-8")
    (folder / "answers.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
