"""moto as AWS documents itself where moto does not: `overlay.py PORT`, with moto on PYTHONPATH.

Owns, around moto's own application and in its process:
- RunInstances with a client token is idempotent; other parameters under a used token are IdempotentParameterMismatch.
- Instances take their time: pending, stopping, shutting-down last for as long as `behave` says.
- Start, stop and hibernate are refused in states that exclude them, by the documented codes.
- AWS's own KMS keys (alias/aws/...) say that AWS manages them; a disabled or missing key encrypts no parameter.
- Values of parameters hold no references (`{{...}}`), and no more than standard ones do.
- Faults: a queue of errors for an action, before or after it was carried out, launches that end at once and starts that stop again.
- An instance that fails its status checks passes them once it was stopped: it starts on other hardware.

Levers: POST /overlay/{behave,fault,doom,tags,vanish,impair,profile,key,asked,counts,instances} with JSON. Everything else is moto's. tests/overlay.rs of
`aws` holds what this claims against what AWS documents.
"""

import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
from io import BytesIO

os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
os.environ.setdefault("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "1")

from moto.ec2 import ec2_backends
from moto.ec2.models.instances import StateReason
from moto.iam import iam_backends
from moto.kms import kms_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
# The state that an action leads to at once, and the one after it.
PASSING = {"RunInstances": ("pending", "running"), "StartInstances": ("pending", "running"),
           "StopInstances": ("stopping", "stopped"), "TerminateInstances": ("shutting-down", "terminated")}
# From which states an action is taken; from those of the second set it changes nothing.
TAKEN = {"StartInstances": ({"stopped"}, {"pending", "running"}),
         "StopInstances": ({"running"}, {"stopping", "stopped"}),
         "TerminateInstances": ({"pending", "running", "stopping", "stopped"}, {"shutting-down", "terminated"})}


class Overlay:
    def __init__(self, moto):
        self.moto = moto
        self.lock = threading.RLock()
        self.delay_ms = {"pending": 0, "stopping": 0, "shutting-down": 0}
        self.tokens = {}  # client token -> (digest of the parameters, status, headers, body)
        self.due = {}  # instance id -> (when, state)
        self.faults = []
        self.doomed = []
        self.impaired = set()
        self.counts = {}
        self.asked = {}  # action -> the form of the last request for it, of services that are asked by forms

    def __call__(self, environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        environ["wsgi.input"] = BytesIO(body)
        path = environ.get("PATH_INFO", "")
        # One request at a time, so that a token's first launch is over before its second one is looked at.
        with self.lock:
            if path.startswith("/overlay/"):
                answer = self.lever(path[len("/overlay/"):], json.loads(body or b"{}"))
                status, headers, body = 200, [("Content-Type", "application/json")], json.dumps(answer).encode()
            else:
                status, headers, body = self.answer(environ, body)
        if status is None:  # cut off without an answer
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(str(status) + " -", headers + [("Content-Length", str(len(body)))])
        return [body]

    def lever(self, name, told):
        if name == "behave":
            self.delay_ms.update(told)
        elif name == "fault":
            # {"action", "code", "status", "times", "after": it is carried out first, "cut": no answer at all}
            self.faults.append({"times": 1, "status": 400, "after": False, "cut": False, "code": "", **told})
        elif name == "doom":
            self.doomed += [(told.get("action", "RunInstances"), told["reason"])] * told.get("times", 1)
        elif name == "tags":
            for key, value in told["tags"].items():
                self.backend().create_tags([told["instance"]], {key: value})
        elif name == "vanish":
            for reservation in self.backend().reservations.values():
                reservation.instances = [one for one in reservation.instances if one.id != told["instance"]]
        elif name == "impair":
            self.impaired.add(told["instance"])
        elif name == "profile":
            iam_backends["123456789012"]["aws"].create_instance_profile(name=told["name"], path="/", role_names=[], tags=[])
        elif name == "key":
            return kms_backends["123456789012"]["eu-central-1"].create_key(
                policy=None, key_usage="ENCRYPT_DECRYPT", key_spec="SYMMETRIC_DEFAULT", description="", tags=[],
                multi_region=False).arn
        elif name == "asked":
            return self.asked.get(told["action"], {})
        elif name == "counts":
            return self.counts
        elif name == "instances":
            # What a hypervisor knows: state and user data, as text; and what it is for, by its tag.
            self.pass_time()
            return [{"id": one.id, "state": one._state.name, "user_data": one.user_data.decode() if one.user_data else "",
                     "purpose": next((tag["value"] for tag in one.get_tags() if tag["key"] == "envforge:purpose"), "")}
                    for reservation in self.backend().reservations.values() for one in reservation.instances]
        return {}

    def backend(self):
        return ec2_backends["123456789012"]["eu-central-1"]

    def answer(self, environ, body):
        self.pass_time()
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        form = dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace"))) if not target else {}
        action = target.split(".")[-1] or form.get("Action", "")
        self.counts[action] = self.counts.get(action, 0) + 1
        self.asked[action] = form
        fault = next((fault for fault in self.faults if fault["action"] == action), None)
        if fault:
            fault["times"] -= 1
            if fault["times"] == 0:
                self.faults.remove(fault)
            if fault["after"]:
                self.carry_out(environ, action, target, form, body)
            return (None, [], b"") if fault["cut"] else error(target, fault["code"], fault["status"])
        return self.carry_out(environ, action, target, form, body)

    def carry_out(self, environ, action, target, form, body):
        if action == "RunInstances":
            return self.run_instances(environ, form)
        if action in TAKEN:
            return self.change(environ, action, form)
        if action == "PutParameter":
            told = json.loads(body)
            refused = self.unusable_key(told.get("KeyId")) if told.get("Type") == "SecureString" else None
            if refused:
                return error(target, "InvalidKeyId", 400, refused)
            # Standard parameters; moto takes any size.
            if len(told.get("Value", "").encode()) > 4096 and told.get("Tier") != "Advanced":
                return error(target, "ValidationException", 400, "Standard tier parameters support a maximum of 4096 characters.")
            # PutParameter, `Value`: no references to other parameters. Refused whatever stands between the brackets.
            if re.search(r"\{\{.*\}\}", told.get("Value", ""), re.S):
                return error(target, "ValidationException", 400, "Parameter value can't nest another parameter.")
        status, headers, answer = self.of_moto(environ)
        if action == "DescribeKey":
            self.mark_keys_of_aws()
            environ["wsgi.input"].seek(0)
            status, headers, answer = self.of_moto(environ)
        if action == "DescribeInstanceStatus":
            for instance in self.impaired:
                answer = re.sub(rb"(<instanceId>%b</instanceId>.*?<instanceStatus>.*?<status>)ok(</status>)" % instance.encode(),
                                rb"\1impaired\2", answer, count=1, flags=re.S)
        return status, headers, answer

    def run_instances(self, environ, form):
        token = form.get("ClientToken")
        rest = {key: value for key, value in form.items() if key not in ("ClientToken", "Action", "Version")}
        digest = hashlib.sha256(json.dumps(sorted(rest.items())).encode()).hexdigest()
        if token in self.tokens:
            first, *answer = self.tokens[token]
            return tuple(answer) if first == digest else error("", "IdempotentParameterMismatch", 400)
        status, headers, body = self.of_moto(environ)
        if status == 200:
            if token:
                self.tokens[token] = (digest, status, headers, body)
            for instance in re.findall(rb"<instanceId>(i-[0-9a-f]+)</instanceId>", body):
                self.begin(instance.decode(), "RunInstances")
            body = re.sub(rb"<instanceState>.*?</instanceState>",
                          b"<instanceState><code>0</code><name>pending</name></instanceState>", body, flags=re.S)
            if token:
                self.tokens[token] = (digest, status, headers, body)
        return status, headers, body

    def change(self, environ, action, form):
        ids = [value for key, value in form.items() if key.startswith("InstanceId.")]
        known = {one.id: one for reservation in self.backend().reservations.values() for one in reservation.instances}
        taken, idle = TAKEN[action]
        for instance in ids:
            state = known[instance]._state.name if instance in known else None
            if state and state not in taken | idle:
                return error("", "IncorrectInstanceState", 400, f"The instance '{instance}' is {state}")
            hibernates = str((known[instance].hibernation_options or {}).get("Configured")).lower() if state else ""
            if form.get("Hibernate") == "true" and hibernates != "true":
                return error("", "UnsupportedHibernationConfiguration", 400)
        changed = [instance for instance in ids if instance in known and known[instance]._state.name in taken]
        if ids and not changed and all(instance in known for instance in ids):
            return self.unchanged(action, ids, known)
        status, headers, body = self.of_moto(environ)
        if status == 200:
            for instance in changed:
                self.begin(instance, action)
        return status, headers, body

    def unchanged(self, action, ids, known):
        state = lambda one: f"<code>{one._state.code}</code><name>{one._state.name}</name>"
        items = "".join(f"<item><instanceId>{id}</instanceId><currentState>{state(known[id])}</currentState>"
                        f"<previousState>{state(known[id])}</previousState></item>" for id in ids)
        body = f'<{action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>overlay</requestId>' \
               f"<instancesSet>{items}</instancesSet></{action}Response>"
        return 200, [("Content-Type", "text/xml")], body.encode()

    def begin(self, instance, action):
        first, then = PASSING[action]
        doom = next((doom for doom in self.doomed if doom[0] == action), None)
        if doom:
            self.doomed.remove(doom)
            then = "terminated" if action == "RunInstances" else "stopped"
        if action == "StopInstances":
            self.impaired.discard(instance)
        self.set(instance, first)
        self.due[instance] = (time.monotonic() + self.delay_ms[first] / 1000, then, doom and doom[1])
        self.pass_time()

    def pass_time(self):
        for instance, (when, state, reason) in list(self.due.items()):
            if time.monotonic() >= when:
                self.set(instance, state, reason)
                del self.due[instance]

    def set(self, instance, name, reason=None):
        for reservation in self.backend().reservations.values():
            for one in reservation.instances:
                if one.id == instance:
                    one._state.name, one._state.code = name, CODES[name]
                    if reason:
                        one.state_reason = StateReason(message=reason, code=reason)

    def mark_keys_of_aws(self):
        for key in kms_backends["123456789012"]["eu-central-1"].keys.values():
            if any(alias.startswith("alias/aws/") for alias in key.aliases):
                key.key_manager = "AWS"

    def unusable_key(self, key_id):
        backend = kms_backends["123456789012"]["eu-central-1"]
        if not key_id or key_id.startswith("alias/aws/"):
            return None
        key = backend.keys.get(key_id.split("/")[-1]) or backend.keys.get(backend.get_key_id_from_alias(key_id))
        if key is None:
            return f"Invalid keyId {key_id}"
        return None if key.enabled else f"{key_id} is disabled"

    def of_moto(self, environ):
        got = {}
        chunks = self.moto(environ, lambda status, headers, *_: got.update(status=int(status.split()[0]), headers=headers))
        body = b"".join(chunks)
        return got["status"], got["headers"], body


def error(target, code, status, message="as the test wants it"):
    if target:
        return status, [("Content-Type", "application/x-amz-json-1.1")], json.dumps({"__type": code, "message": message}).encode()
    body = f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>overlay</RequestID></Response>"
    return status, [("Content-Type", "text/xml")], body.encode()


class Handler(MotoRequestHandler):
    def log(self, *_):
        pass


if __name__ == "__main__":
    overlay = Overlay(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), overlay, threaded=True, request_handler=Handler)
