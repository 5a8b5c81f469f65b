"""Ask a vLLM server with the soft prompt in this folder.

    python ask.py "What is the capital of France?" --url http://127.0.0.1:8000/v1

`shoulders export` writes this file beside the prompt. It needs openai, safetensors, tokenizers and torch.
"""

import argparse
import base64
import io
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer


def vectors(folder: Path, question: str, evidence: str = "") -> torch.Tensor:
    """Return the vectors that the model reads: the token embeddings of a question, and the prompt in its place."""
    described = json.loads((folder / "vllm.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # in a question they are characters

    def ids(text: str) -> list[int]:
        found = tokenizer.encode(text).ids
        return found[:-1] if found and found[-1] == described["end"] else found

    whole = ids(evidence + described["wording"].replace("{query}", question))
    slots = {"prefix": 0, "infix": len(ids(evidence)) if evidence else 0, "suffix": len(whole)}
    slot = min(slots[described["placement"]], len(whole))
    tensors = load_file(folder / "vectors.safetensors")
    text = tensors["embeddings"][torch.tensor(whole)].float()
    return torch.cat([text[:slot], tensors["prompt"], text[slot:]])


def encoded(rows: torch.Tensor) -> str:
    """Return vectors as vLLM's API takes them."""
    file = io.BytesIO()
    torch.save(rows, file)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Print the greedy answer of the server."""
    from openai import OpenAI

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("question")
    parser.add_argument("--evidence", default="", help="text to read before the question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--longest", type=int, default=64, help="largest number of tokens of the answer")
    asked = parser.parse_args()
    rows = vectors(Path(__file__).parent, asked.question, asked.evidence)
    client = OpenAI(base_url=asked.url, api_key=asked.key)
    answer = client.completions.create(
        model=client.models.list().data[0].id,
        prompt="",  # the client wants a text, and vLLM none beside vectors
        max_tokens=asked.longest,
        temperature=0,
        extra_body={"prompt": None, "prompt_embeds": encoded(rows)},
    )
    print(answer.choices[0].text.strip())  # noqa: T201


if __name__ == "__main__":
    main()
