#!/usr/bin/env bash
# Asks a served model with curl: serving/client_example.sh http://127.0.0.1:8000 "Why is the sky blue?"
# Where the server wants a key, put it into the variable OPENAI_API_KEY. Needs jq.
set -euo pipefail
url=${1:?usage: client_example.sh URL QUESTION}
question=${2:?usage: client_example.sh URL QUESTION}
headers=(-H 'Content-Type: application/json')
if [ -n "${OPENAI_API_KEY:-}" ]; then
  headers+=(-H "Authorization: Bearer $OPENAI_API_KEY")
fi
model=$(curl --silent --fail-with-body "${headers[@]}" "$url/v1/models" | jq --raw-output '.data[0].id')
jq --null-input --arg model "$model" --arg question "$question" \
  '{model: $model, messages: [{role: "user", content: $question}], max_tokens: 128, stream: true}' |
  curl --silent --fail-with-body --no-buffer "${headers[@]}" "$url/v1/chat/completions" --data @- |
  sed --unbuffered --quiet 's/^data: \({.*\)/\1/p' |
  jq --unbuffered --raw-output --join-output '.choices[0].delta.content // empty'
echo
