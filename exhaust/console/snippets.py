"""Programs that repeat an export through the API; they read the key from the environment."""

import json
import shlex
from pprint import pformat
from typing import Any

from django.conf import settings

from exhaust.models import Job

_PYTHON = """\
import json
import os
import time
import urllib.request

BASE = {base!r}
HEADERS = {{
    "X-API-Key": os.environ["EXHAUST_KEY"],
    "X-Channel-ID": {channel!r},
    "Content-Type": "application/json",
}}
EXPORT = {request}
{password}

def call(path, body=None):
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(BASE + path, data, HEADERS)) as response:
        return json.load(response)["result"]


job = call("/dataset/v1/request/submit", {{"request": EXPORT}})
while job["status"] in ("SUBMITTED", "PROCESSING"):
    time.sleep(2)
    job = call(f"/dataset/v1/request/read/{{EXPORT['tag']}}?requestId={{job['requestId']}}")
print(job["status"], job["statusMessage"])
for url, file in zip(job["downloadUrls"], job["files"]):
    urllib.request.urlretrieve(url, file["name"])
    print(file["name"])
"""

_JAVASCRIPT = """\
import {{ writeFile }} from "node:fs/promises";

const base = {base};
const headers = {{
  "X-API-Key": process.env.EXHAUST_KEY,
  "X-Channel-ID": {channel},
  "Content-Type": "application/json",
}};
const request = {request};
{password}
async function call(path, body) {{
  const options = {{ method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) }};
  const response = await fetch(base + path, options);
  if (!response.ok) throw new Error(await response.text());
  return (await response.json()).result;
}}

let job = await call("/dataset/v1/request/submit", {{ request }});
while (["SUBMITTED", "PROCESSING"].includes(job.status)) {{
  await new Promise((resolve) => setTimeout(resolve, 2000));
  job = await call(`/dataset/v1/request/read/${{request.tag}}?requestId=${{job.requestId}}`);
}}
console.log(job.status, job.statusMessage);
for (const [number, url] of job.downloadUrls.entries()) {{
  const content = await (await fetch(url)).arrayBuffer();
  await writeFile(job.files[number].name, Buffer.from(content));
  console.log(job.files[number].name);
}}
"""


def write_curl(job: Job) -> str:
    """Returns the request as a curl command."""
    body = json.dumps({"request": _build_request(job)}, ensure_ascii=False, indent=1)
    url = shlex.quote(f"{settings.EXHAUST_PUBLIC_URL}/dataset/v1/request/submit")
    channel = shlex.quote(f"X-Channel-ID: {job.channel.identifier}")
    return " \\\n  ".join(
        (
            f"curl -s {url}",
            f'-H "X-API-Key: $EXHAUST_KEY" -H {channel}',
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(body)}",
        )
    )


def write_python(job: Job) -> str:
    """Returns a Python program without dependencies: it submits, waits and downloads."""
    has_password = job.encryption == "password"
    return _PYTHON.format(
        base=settings.EXHAUST_PUBLIC_URL,
        channel=job.channel.identifier,
        request=pformat(_build_request(job), width=90, sort_dicts=False),
        password='EXPORT["encryptionKey"] = os.environ["EXHAUST_FILE_PASSWORD"]\n'
        if has_password
        else "",
    )


def write_javascript(job: Job) -> str:
    """Returns a module for Node that does the same."""
    has_password = job.encryption == "password"
    return _JAVASCRIPT.format(
        base=json.dumps(settings.EXHAUST_PUBLIC_URL),
        channel=json.dumps(job.channel.identifier),
        request=json.dumps(_build_request(job), ensure_ascii=False, indent=2),
        password="request.encryptionKey = process.env.EXHAUST_FILE_PASSWORD;\n"
        if has_password
        else "",
    )


def _build_request(job: Job) -> dict[str, Any]:
    """Returns the request of the API that this job answers, without a password."""
    request = {
        "tag": job.tag,
        "dataset": job.dataset,
        "requestedBy": job.requested_by,
        "datasetConfig": job.config,
        "outputFormat": job.output_format,
    }
    if job.encryption:  # without the password the API's error asks for it
        request["encryption"] = job.encryption
    if job.callback_url:
        request["callbackUrl"] = job.callback_url
    if job.deliver_to:
        request["deliverTo"] = job.deliver_to
    if job.priority != Job.Priority.INTERACTIVE:
        request["priority"] = Job.Priority(job.priority).name.lower()
    return request
