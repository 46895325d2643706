-- counters 1 9fd821bb265bd76a; docs 10 4eb14255405fbb08; events 20 483ca843bfce4997; jobs 11 e5251eb2ddced88c; log_records 5 99c602eb1debd304; log_hashes 10 3c4b909c2db8eb8e; materials 10 8dfe16ae401cfb7f
PRAGMA application_id = 1263817294;
CREATE TABLE goose_db_version (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL,
		tstamp TIMESTAMP DEFAULT (datetime('now'))
	);
CREATE TABLE counters (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    rev   INTEGER NOT NULL,
    fence INTEGER NOT NULL
) STRICT;
CREATE TABLE docs (
    id   INTEGER PRIMARY KEY,
    kind TEXT    NOT NULL,
    name TEXT    NOT NULL,
    rev  INTEGER NOT NULL UNIQUE,
    due  INTEGER,
    body BLOB    NOT NULL
) STRICT;
CREATE TABLE events (
    key      TEXT    NOT NULL,
    seq      INTEGER NOT NULL CHECK (seq > 0),
    rotation BLOB    NOT NULL CHECK (length(rotation) = 16),
    type     TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    body     BLOB    NOT NULL,
    PRIMARY KEY (key, seq)
) STRICT, WITHOUT ROWID;
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
CREATE TABLE log_records (
    number INTEGER PRIMARY KEY CHECK (number >= 0),
    record BLOB NOT NULL
) STRICT;
CREATE TABLE log_hashes (
    number INTEGER PRIMARY KEY CHECK (number >= 0),
    hash   BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE TABLE materials (
    key     TEXT    NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    pad     BLOB    NOT NULL CHECK (length(pad) = 1024),
    sealed  BLOB    NOT NULL,
    PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX docs_by_name ON docs (kind, name);
CREATE INDEX docs_by_rev ON docs (kind, rev);
CREATE INDEX docs_by_due ON docs (kind, due, name) WHERE due IS NOT NULL;
CREATE INDEX events_by_rotation ON events (rotation, key, seq);
CREATE UNIQUE INDEX jobs_lane_leased ON jobs (lane) WHERE state = 3;
CREATE UNIQUE INDEX jobs_lane_waiting ON jobs (lane) WHERE state < 3;
CREATE INDEX jobs_by_key ON jobs (key, seq);
CREATE INDEX jobs_by_lease ON jobs (until, target) WHERE state = 3;
CREATE INDEX jobs_backlog ON jobs (target, priority, run_at, seq) WHERE state = 1;
CREATE UNIQUE INDEX jobs_front ON jobs (target, priority) WHERE front = 1;
CREATE INDEX jobs_claim_order ON jobs (priority, run_at, seq) WHERE front = 1;
CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
CREATE TRIGGER log_records_no_update BEFORE UPDATE ON log_records BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER log_records_no_delete BEFORE DELETE ON log_records BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER log_hashes_no_update BEFORE UPDATE ON log_hashes BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER log_hashes_no_delete BEFORE DELETE ON log_hashes BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
INSERT INTO goose_db_version (id, version_id, is_applied, tstamp) VALUES (1, 0, 1, '2026-11-26 00:00:00');
INSERT INTO goose_db_version (id, version_id, is_applied, tstamp) VALUES (2, 1, 1, '2026-11-26 00:00:00');
INSERT OR REPLACE INTO counters (rev, fence, id) VALUES (10, 2, 1);
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('key', 'prod/0/dätabase', 2, NULL, X'');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('key', 'prod/1/dätabase', 4, NULL, X'');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('key', 'prod/2/dätabase', 6, NULL, X'');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('key', 'prod/3/dätabase', 8, NULL, X'');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('key', 'prod/4/dätabase', 10, NULL, X'');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('rotation', 'prod/0/dätabase', 1, 1795428000000000, X'7b7d');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('rotation', 'prod/1/dätabase', 3, 1795428060000000, X'7b7d');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('rotation', 'prod/2/dätabase', 5, 1795428120000000, X'7b7d');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('rotation', 'prod/3/dätabase', 7, 1795428180000000, X'7b7d');
INSERT OR REPLACE INTO docs (kind, name, rev, due, body) VALUES ('rotation', 'prod/4/dätabase', 9, 1795428240000000, X'7b7d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/0/dätabase', 1, X'01000000000000000000000000000000', 'accepted', 1795428000000000, X'7b226e223a307d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/0/dätabase', 2, X'01000000000000000000000000000000', 'accepted', 1795428001000000, X'7b226e223a317d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/0/dätabase', 3, X'01000000000000000000000000000000', 'accepted', 1795428002000000, X'7b226e223a327d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/0/dätabase', 4, X'01000000000000000000000000000000', 'accepted', 1795428003000000, X'7b226e223a337d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/1/dätabase', 1, X'02000000000000000000000000000000', 'accepted', 1795428000000000, X'7b226e223a307d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/1/dätabase', 2, X'02000000000000000000000000000000', 'accepted', 1795428001000000, X'7b226e223a317d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/1/dätabase', 3, X'02000000000000000000000000000000', 'accepted', 1795428002000000, X'7b226e223a327d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/1/dätabase', 4, X'02000000000000000000000000000000', 'accepted', 1795428003000000, X'7b226e223a337d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/2/dätabase', 1, X'03000000000000000000000000000000', 'accepted', 1795428000000000, X'7b226e223a307d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/2/dätabase', 2, X'03000000000000000000000000000000', 'accepted', 1795428001000000, X'7b226e223a317d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/2/dätabase', 3, X'03000000000000000000000000000000', 'accepted', 1795428002000000, X'7b226e223a327d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/2/dätabase', 4, X'03000000000000000000000000000000', 'accepted', 1795428003000000, X'7b226e223a337d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/3/dätabase', 1, X'04000000000000000000000000000000', 'accepted', 1795428000000000, X'7b226e223a307d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/3/dätabase', 2, X'04000000000000000000000000000000', 'accepted', 1795428001000000, X'7b226e223a317d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/3/dätabase', 3, X'04000000000000000000000000000000', 'accepted', 1795428002000000, X'7b226e223a327d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/3/dätabase', 4, X'04000000000000000000000000000000', 'accepted', 1795428003000000, X'7b226e223a337d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/4/dätabase', 1, X'05000000000000000000000000000000', 'accepted', 1795428000000000, X'7b226e223a307d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/4/dätabase', 2, X'05000000000000000000000000000000', 'accepted', 1795428001000000, X'7b226e223a317d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/4/dätabase', 3, X'05000000000000000000000000000000', 'accepted', 1795428002000000, X'7b226e223a327d');
INSERT OR REPLACE INTO events (key, seq, rotation, type, at, body) VALUES ('prod/4/dätabase', 4, X'05000000000000000000000000000000', 'accepted', 1795428003000000, X'7b226e223a337d');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (1, 'leased 0', 'lane 0', 'hanging', 'prod/0/dätabase', 9, 1795431600000000, 1, 1, 1, 1, NULL, X'626f6479');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (2, 'free 0', 'other 0', 'target', 'prod/0/dätabase', 0, 1795431600000000, 0, 0, 1, 1, NULL, X'');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (3, 'leased 1', 'lane 1', 'hanging', 'prod/1/dätabase', 8, 1795428000000000, 1, 2, 3, 0, 0, X'626f6479');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (4, 'free 1', 'other 1', 'target', 'prod/1/dätabase', -1, 1795431600000000, 0, 0, 1, 1, NULL, X'');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (5, 'leased 2', 'lane 2', 'hanging', 'prod/2/dätabase', 7, 1795428000000000, 0, 0, 1, 1, NULL, X'626f6479');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (6, 'free 2', 'other 2', 'target', 'prod/2/dätabase', -2, 1795431600000000, 0, 0, 1, 1, NULL, X'');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (7, 'leased 3', 'lane 3', 'hanging', 'prod/3/dätabase', 6, 1795428000000000, 0, 0, 1, 1, NULL, X'626f6479');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (8, 'free 3', 'other 3', 'target', 'prod/3/dätabase', -3, 1795431600000000, 0, 0, 1, 1, NULL, X'');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (9, 'leased 4', 'lane 4', 'hanging', 'prod/4/dätabase', 5, 1795428000000000, 0, 0, 1, 1, NULL, X'626f6479');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (10, 'free 4', 'other 4', 'target', 'prod/4/dätabase', -4, 1795431600000000, 0, 0, 1, 1, NULL, X'');
INSERT OR REPLACE INTO jobs (seq, id, lane, target, key, priority, run_at, attempt, fence, state, front, until, body) VALUES (11, 'blocked', 'lane 1', 'hanging', 'k', 0, 1795428000000000, 0, 0, 2, 0, NULL, X'');
INSERT OR REPLACE INTO log_records (number, record) VALUES (0, X'70726f642f302f64c3a4746162617365');
INSERT OR REPLACE INTO log_records (number, record) VALUES (1, X'70726f642f312f64c3a4746162617365');
INSERT OR REPLACE INTO log_records (number, record) VALUES (2, X'70726f642f322f64c3a4746162617365');
INSERT OR REPLACE INTO log_records (number, record) VALUES (3, X'70726f642f332f64c3a4746162617365');
INSERT OR REPLACE INTO log_records (number, record) VALUES (4, X'70726f642f342f64c3a4746162617365');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (0, X'0000000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (1, X'0001000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (2, X'0100000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (3, X'0101000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (4, X'0200000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (5, X'0201000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (6, X'0300000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (7, X'0301000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (8, X'0400000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO log_hashes (number, hash) VALUES (9, X'0401000000000000000000000000000000000000000000000000000000000000');
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/0/dätabase', 1, X'7365616c656400ff70726f642f302f64c3a4746162617365', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/0/dätabase', 2, X'', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/1/dätabase', 1, X'7365616c656400ff70726f642f312f64c3a4746162617365', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/1/dätabase', 2, X'', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/2/dätabase', 1, X'7365616c656400ff70726f642f322f64c3a4746162617365', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/2/dätabase', 2, X'', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/3/dätabase', 1, X'7365616c656400ff70726f642f332f64c3a4746162617365', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/3/dätabase', 2, X'', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/4/dätabase', 1, X'7365616c656400ff70726f642f342f64c3a4746162617365', zeroblob(1024));
INSERT OR REPLACE INTO materials (key, version, sealed, pad) VALUES ('prod/4/dätabase', 2, X'', zeroblob(1024));
