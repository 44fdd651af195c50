#!/bin/sh
# Asks a gateway with curl. Usage: sh chat.sh [MODEL]
set -eu
url=${GATEWAY_URL:-http://127.0.0.1:8080}
key=${GATEWAY_API_KEY:-none}
model=${1:-demo}

ask() {
  curl --fail-with-body --silent --show-error --no-buffer "$url/v1/chat/completions" \
    -H "authorization: Bearer $key" -H 'content-type: application/json' -d "$1"
  echo
}

# One JSON document, once the answer is complete.
ask "{\"model\": \"$model\", \"messages\": [{\"role\": \"user\", \"content\": \"What is a replica?\"}]}"

# One event for each part of the answer, as it is generated. The last event is [DONE].
ask "{\"model\": \"$model\", \"messages\": [{\"role\": \"user\", \"content\": \"What is a lease?\"}], \"stream\": true}"
