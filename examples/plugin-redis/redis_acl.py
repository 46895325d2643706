#!/usr/bin/env python3
"""A plugin of Keyturn that rotates logins of Redis, by the protocol keyturn-provider/v1.

Each version is an ACL user of its own, named PREFIX and the version's number, so that
old and new are accepted side by side, and CLIENT LIST says who uses which. Redis gets
the SHA-256 of a password, never the password itself. The fence of the last call for each
user, and the one that was raised for the whole key, are kept in Redis keys beside it, so
that a late call is turned away.

Run as a program it answers one request:   redis_acl.py < request > answer
Run as a service it answers signed POSTs:  redis_acl.py --serve 8443 CERT KEY SECRETFILE

The administrator's password is in the file that REDIS_ADMIN_FILE names, its user in
REDIS_ADMIN (default: default). Settings in the key's config:

  prefix: orders-v            the beginning of the users' names
  rules: "~orders:* +@all -@admin"  what the users may do, in Redis' own words

An endpoint's host is HOST:PORT of one Redis server. Only Python's own library is used.
"""

import base64
import hashlib
import hmac
import json
import os
import socket
import sys
import time

PROTOCOL = "keyturn-provider/v1"


class Problem(Exception):
    """What becomes the member "error" of an answer."""

    def __init__(self, message, code=None, hint=None):
        super().__init__(message)
        self.error = {"message": message}
        if code:
            self.error["code"] = code
        if hint:
            self.error["hint"] = hint


class RedisError(Exception):
    """Redis answered with an error."""


class Redis:
    """One connection that speaks RESP2."""

    def __init__(self, host, deadline):
        name, _, port = host.rpartition(":")
        self.deadline = deadline
        self.socket = socket.create_connection((name, int(port)), self.left())
        self.stream = self.socket.makefile("rb")

    def left(self):
        """Seconds until the deadline; a socket needs more than none."""
        return max(self.deadline - time.monotonic(), 0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def send(self, *words):
        """Sends one command and returns its answer."""
        self.socket.settimeout(self.left())
        encoded = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.socket.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded))
        return self.read()

    def read(self):
        line = self.stream.readline().rstrip(b"\r\n")
        if not line:
            raise OSError("the server closed the connection")
        kind, rest = line[:1], line[1:].decode()
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest)
        if kind == b":":
            return int(rest)
        if int(rest) < 0:
            return None
        if kind == b"$":
            return self.stream.read(int(rest) + 2)[:-2].decode()
        return [self.read() for _ in range(int(rest))]


def admin(host, deadline):
    """Logs in as the administrator."""
    with open(os.environ["REDIS_ADMIN_FILE"], encoding="utf-8") as file:
        password = file.read().strip()
    redis = Redis(host, deadline)
    try:
        redis.send("AUTH", os.environ.get("REDIS_ADMIN", "default"), password)
    except RedisError as error:
        raise Problem("Redis refused the administrator's password", "denied", "put the right one into REDIS_ADMIN_FILE") from error
    return redis


class Plugin:
    """Answers one request."""

    def __init__(self, request):
        self.request = request
        self.deadline = time.monotonic() + request["timeoutSeconds"]
        self.settings = request.get("settings", {})
        self.prefix = self.settings.get("prefix", "keyturn-v")
        self.rules = self.settings.get("rules", "~* +@all -@admin -@dangerous")
        self.hosts = {e["name"]: e.get("host", "") for e in request.get("endpoints", [])}

    def user(self):
        attributes = self.request["version"].get("attributes", {})
        return attributes.get("username") or "%s%d" % (self.prefix, self.request["version"]["number"])

    def host(self):
        host = self.hosts.get(self.request.get("endpoint"))
        if not host:
            raise Problem("there is no such endpoint, or it has no host", "permanent", "endpoints need host: HOST:PORT")
        return host

    def describe(self):
        methods = [m for m in dir(self) if m in ("describe", "mint", "accept", "refuse", "probe", "usage", "preflight", "held", "fence", "destroy")]
        return {"describe": {"name": "redis-acl", "version": "1", "protocols": [PROTOCOL], "methods": methods, "capacity": 0, "gap": False}}

    def mint(self):
        secret = base64.urlsafe_b64encode(os.urandom(24)).decode()
        return {"material": {"attributes": {"username": self.user()}, "secrets": {"password": secret}}}

    def change(self, host, *commands, forget_after=None):
        """Runs commands as one at a server, unless a later call was here already.

        Two fences are compared: the one that the last call for this version left, and
        the one that "fence" has raised for the key, also for versions unknown here.
        """
        user_fence, fence = "keyturn:fence:" + self.user(), self.request["call"]["fence"]
        with admin(host, self.deadline) as redis:
            redis.send("WATCH", user_fence, self.key_fence())
            if any(int(seen or 0) > fence for seen in redis.send("MGET", user_fence, self.key_fence())):
                raise Problem("a later call was here already", "permanent")
            redis.send("MULTI")
            redis.send("SET", user_fence, fence, *(["EX", forget_after] if forget_after else []))
            for command in commands:
                redis.send(*command)
            self.execute(redis)
            try:
                redis.send("ACL", "SAVE")
            except RedisError as error:
                if "not configured" not in str(error):  # without an aclfile there is nothing to save to
                    raise
        return {"ok": True}

    def key_fence(self):
        """The name of the Redis key with the fence of Keyturn's key."""
        return "keyturn:fence-of-key:" + self.request["call"]["key"]

    def execute(self, redis):
        if redis.send("EXEC") is None:
            raise Problem("another call was here at the same time")

    def accept(self):
        password = self.request["version"]["secrets"]["password"]
        digest = hashlib.sha256(password.encode()).hexdigest()
        return self.change(self.host(), ["ACL", "SETUSER", self.user(), "reset", "#" + digest, *self.rules.split(), "on"])

    def refuse(self):
        return self.change(self.host(), ["ACL", "SETUSER", self.user(), "off"], ["CLIENT", "KILL", "USER", self.user()])

    def fence(self):
        """From now on, calls with a smaller fence are turned away, whatever the version.

        A change that has read the fence before, and is not made yet, fails: it watches it.
        """
        fence = self.request["call"]["fence"]
        with admin(self.host(), self.deadline) as redis:
            redis.send("WATCH", self.key_fence())
            if int(redis.send("GET", self.key_fence()) or 0) < fence:
                redis.send("MULTI")
                redis.send("SET", self.key_fence(), fence)
                self.execute(redis)
        return {"ok": True}

    def probe(self):
        with Redis(self.host(), self.deadline) as redis:
            try:
                redis.send("AUTH", self.user(), self.request["version"]["secrets"]["password"])
            except RedisError as error:
                if str(error).startswith("WRONGPASS"):
                    return {"verdict": "refused"}
                raise
            return {"verdict": "accepted"}

    def usage(self):
        sessions = 0
        holders = []
        for name, host in self.hosts.items():
            try:
                with admin(host, self.deadline) as redis:
                    clients = redis.send("CLIENT", "LIST")
            except OSError as error:
                raise Problem("%s gave no answer: %s" % (name, error), "no-data") from error
            for line in clients.splitlines():
                client = dict(word.partition("=")[::2] for word in line.split())
                if client.get("user") == self.user():
                    sessions += 1
                    holders.append({"endpoint": name, "address": client.get("addr", ""), "application": client.get("name", ""), "sessions": 1})
        return {"usage": {"sessions": sessions, "holders": holders[:100]}}

    def users(self, redis):
        """Users that are this key's, with whether they are accepted."""
        for line in redis.send("ACL", "LIST"):
            words = line.split()
            if words[1].startswith(self.prefix) and words[1][len(self.prefix):].isdigit():
                yield words[1], "on" in words[2:]

    def held(self):
        found = []
        for name, host in self.hosts.items():
            with admin(host, self.deadline) as redis:
                for user, accepted in self.users(redis):
                    found.append({
                        "endpoint": name, "version": int(user[len(self.prefix):]), "accepted": accepted, "attributes": {"username": user},
                    })
        return {"held": found}

    def preflight(self):
        findings = []
        for name, host in self.hosts.items():
            with admin(host, self.deadline) as redis:
                if redis.send("CONFIG", "GET", "aclfile")[1] == "":
                    findings.append({
                        "code": "not-persistent", "message": name + " forgets its users when it restarts", "hint": "set aclfile in redis.conf",
                    })
                if redis.send("CONFIG", "GET", "maxmemory-policy")[1].startswith("allkeys"):
                    findings.append({
                        "code": "fences-evicted", "message": name + " may forget the fences of late calls when its memory is full",
                        "hint": "set maxmemory-policy in redis.conf to noeviction or volatile-lru",
                    })
        return {"findings": findings}

    def destroy(self):
        """Deletes the user everywhere; its fence stays for as long as a call may be late."""
        for host in self.hosts.values():
            self.change(host, ["ACL", "DELUSER", self.user()], forget_after=86400)
        return {"ok": True}

    def answer(self):
        """Everything that goes wrong becomes an error; nobody is told a password."""
        method = self.request.get("method", "")
        known = self.describe()["describe"]["methods"]
        try:
            if self.request.get("protocol") != PROTOCOL or method not in known:
                raise Problem("this plugin does not know that method or protocol", "unsupported")
            said = getattr(self, method)()
        except Problem as problem:
            said = {"error": problem.error}
        except RedisError as error:
            said = {"error": {"message": "Redis answered: " + str(error)}}
        except OSError as error:
            said = {"error": {"message": "Redis gave no answer: " + str(error), "code": "silent"}}
        return {"protocol": PROTOCOL, "id": self.request.get("id"), "method": method, **said}


def verified(headers, body, secrets, now):
    """Whether the request is signed as Standard Webhooks says, and not five minutes old."""
    sent_at = headers.get("webhook-timestamp", "")
    if not sent_at.isdigit() or abs(now - int(sent_at)) > 300:
        return False
    signed = b".".join([headers.get("webhook-id", "").encode(), sent_at.encode(), body])
    shown = headers.get("webhook-signature", "").split()
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        right = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        if any([hmac.compare_digest(right.encode(), s.encode()) for s in shown]):
            return True
    return False


def serve(port, certificate, key, secret_file):
    """Answers signed requests over HTTPS; without a certificate over HTTP, on loopback."""
    import ssl
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_POST(self):
            size = int(self.headers.get("Content-Length", 0))
            if size > 1 << 20:
                self.send_error(413)
                return
            body = self.rfile.read(size)
            with open(secret_file, encoding="utf-8") as file:
                secrets = file.read().split()
            if not verified(self.headers, body, secrets, time.time()):
                self.send_error(401)
                return
            answer = json.dumps(Plugin(json.loads(body)).answer()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            """Keyturn keeps the log."""

    server = ThreadingHTTPServer(("127.0.0.1" if not certificate else "", port), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def main():
    if sys.argv[1:2] == ["--serve"]:
        port, certificate, key, secret_file = sys.argv[2:6]
        serve(int(port), certificate, key, secret_file)
        return
    json.dump(Plugin(json.load(sys.stdin)).answer(), sys.stdout)


main()
