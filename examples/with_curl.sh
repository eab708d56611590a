#!/bin/sh
# curl: an answer with its threads as it comes over the wire, a server-sent event a line.
#
#   examples/with_curl.sh
#
# Each event holds a piece of the answer (`delta.content`) or pieces of its threads (`delta.threads`). The last one
# holds the `usage`: how many tokens were generated, and in how many decoding steps.
# OPENAI_BASE_URL is the server's address, by default http://localhost:8000/v1.
set -eu

curl --silent --show-error --fail-with-body --no-buffer \
    "${OPENAI_BASE_URL:-http://localhost:8000/v1}/chat/completions" \
    --header 'content-type: application/json' \
    --data '{
        "model": "abacus",
        "messages": [{"role": "user", "content": "a=482*731, b=9047*36"}],
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_threads": true, "include_usage": true}
    }'
