-- +goose Up

-- "KTRN": lets Open refuse a database of another program.
PRAGMA application_id = 1263817294;

-- The last number handed out of each store-wide counter.
CREATE TABLE counters (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    rev   INTEGER NOT NULL,
    fence INTEGER NOT NULL
) STRICT;
INSERT INTO counters (id, rev, fence) VALUES (1, 0, 0);

-- Times are microseconds since 1970 in UTC.
CREATE TABLE docs (
    id   INTEGER PRIMARY KEY,
    kind TEXT    NOT NULL,
    name TEXT    NOT NULL,
    rev  INTEGER NOT NULL UNIQUE,
    due  INTEGER,
    body BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX docs_by_name ON docs (kind, name);
CREATE INDEX docs_by_rev ON docs (kind, rev);
CREATE INDEX docs_by_due ON docs (kind, due, name) WHERE due IS NOT NULL;

CREATE TABLE events (
    key      TEXT    NOT NULL,
    seq      INTEGER NOT NULL CHECK (seq > 0),
    rotation BLOB    NOT NULL CHECK (length(rotation) = 16),
    type     TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    body     BLOB    NOT NULL,
    PRIMARY KEY (key, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_by_rotation ON events (rotation, key, seq);

-- A job is free (1), blocked behind a leased job of its lane (2), or leased (3).
-- The front of a target and priority is its free job with the earliest run_at:
-- claiming looks at fronts only, so that a long backlog hides nothing.
CREATE TABLE jobs (
    seq      INTEGER PRIMARY KEY,
    id       TEXT    NOT NULL UNIQUE,
    lane     TEXT    NOT NULL,
    target   TEXT    NOT NULL,
    key      TEXT    NOT NULL,
    priority INTEGER NOT NULL,
    run_at   INTEGER NOT NULL,
    attempt  INTEGER NOT NULL DEFAULT 0,
    fence    INTEGER NOT NULL DEFAULT 0,
    state    INTEGER NOT NULL CHECK (state IN (1, 2, 3)),
    front    INTEGER NOT NULL DEFAULT 0 CHECK (front = 0 OR (front = 1 AND state = 1)),
    until    INTEGER CHECK ((until IS NOT NULL) = (state = 3)),
    body     BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX jobs_lane_leased ON jobs (lane) WHERE state = 3;
CREATE UNIQUE INDEX jobs_lane_waiting ON jobs (lane) WHERE state < 3;
CREATE INDEX jobs_by_key ON jobs (key, seq);
CREATE INDEX jobs_by_lease ON jobs (until, target) WHERE state = 3;
CREATE INDEX jobs_backlog ON jobs (target, priority, run_at, seq) WHERE state = 1;
CREATE UNIQUE INDEX jobs_front ON jobs (target, priority) WHERE front = 1;
CREATE INDEX jobs_claim_order ON jobs (priority, run_at, seq) WHERE front = 1;

CREATE TABLE log_records (
    number INTEGER PRIMARY KEY CHECK (number >= 0),
    record BLOB NOT NULL
) STRICT;

CREATE TABLE log_hashes (
    number INTEGER PRIMARY KEY CHECK (number >= 0),
    hash   BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- pad keeps every byte of sealed out of b-tree pages: SQLite stores at most
-- 1002 bytes of such a row in the tree (4 KiB pages) and the rest in pages of
-- its own. Pages of the tree are rearranged, which leaves old copies of rows in
-- their unused parts, where secure_delete does not reach; the other pages are
-- never moved and are zeroed when they are freed.
CREATE TABLE materials (
    key     TEXT    NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    pad     BLOB    NOT NULL CHECK (length(pad) = 1024),
    sealed  BLOB    NOT NULL,
    PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;

-- History is append-only, whoever writes.
-- +goose StatementBegin
CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER log_records_no_update BEFORE UPDATE ON log_records BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER log_records_no_delete BEFORE DELETE ON log_records BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER log_hashes_no_update BEFORE UPDATE ON log_hashes BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER log_hashes_no_delete BEFORE DELETE ON log_hashes BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
-- +goose StatementEnd
