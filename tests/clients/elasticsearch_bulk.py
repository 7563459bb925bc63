"""Sends sessions by the installed `elasticsearch` and prints the outcome, as JSON.

python elasticsearch_bulk.py URL USER PASSWORD
"""

import json
import sys

import elasticsearch
from elasticsearch import Elasticsearch, helpers

url, user, password = sys.argv[1:]
major = elasticsearch.__version__[0]
login = {"basic_auth" if major > 7 else "http_auth": (user, password)}
client = Elasticsearch(url, max_retries=0, **login)
sessions = [
    {"userSessionId": f"py{major}-{number}", "startTime": 1648785600000, "userActions": []}
    for number in range(25)
]
actions = [
    {"_index": "sessions", "_id": each["userSessionId"], "_source": each} for each in sessions
]
bad = {"_index": "sessions", "_source": {"startTime": 1}}
outcome = {
    "major": major,
    "tagline": client.info()["tagline"],
    "sent": helpers.bulk(client, actions, chunk_size=10),
    "again": helpers.bulk(client, actions),
    "bad": helpers.bulk(client, [bad], raise_on_error=False)[1][0]["index"]["error"]["type"],
}
json.dump(outcome, sys.stdout)
