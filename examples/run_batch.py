"""A file of requests in, a file of answers out: the format of `vllm run-batch` and of OpenAI's batches.

    pip install httpx
    python examples/run_batch.py [INPUT.jsonl OUTPUT.jsonl]

A hundred requests are open at a time, as many as httpx has connections. The server runs as many of them
as it has room for; one that it refuses is sent again after its `Retry-After`. Without arguments, asks
`batch.jsonl` of this folder.
OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx

SERVER = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1").removesuffix("/v1")
BUSY = (429, 503)


async def answer(client, line):
    """The line of the output for a line of the input."""
    request = json.loads(line)
    response = await client.post(request["url"], json=request["body"])
    while response.status_code in BUSY:
        await asyncio.sleep(float(response.headers.get("retry-after", 1)))
        response = await client.post(request["url"], json=request["body"])
    body = response.json()
    return {
        "id": f"batch-{request['custom_id']}",
        "custom_id": request["custom_id"],
        "response": {"status_code": response.status_code, "request_id": body.get("id"), "body": body},
        "error": body.get("error"),
    }


async def run(source, target):
    """Ask all that ``source`` says, and write the answers to ``target``."""
    async with httpx.AsyncClient(base_url=SERVER, timeout=3600) as client:
        lines = source.read_text().splitlines()
        answers = await asyncio.gather(*(answer(client, line) for line in lines if line.strip()))
    target.write_text("".join(json.dumps(one) + "\n" for one in answers))
    return answers


paths = sys.argv[1:] or [Path(__file__).with_name("batch.jsonl"), "batch-answers.jsonl"]
for one in asyncio.run(run(*map(Path, paths))):
    print("---", one["custom_id"], one["response"]["status_code"])
    if one["error"] is not None:
        print(one["error"]["message"])
        continue
    body = one["response"]["body"]
    print(body["choices"][0]["message"]["content"].rpartition("</think>\n")[2])
    if counts := body["usage"].get("forkjoin"):  # it has forked
        saved = "{critical_path_tokens} steps instead of {total_tokens}".format(**counts)
        print(f"{counts['num_threads']} threads: {saved}")
