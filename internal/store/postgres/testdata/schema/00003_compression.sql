-- counters 1 9fd821bb265bd76a; docs 10 4eb14255405fbb08; events 20 483ca843bfce4997; jobs 11 efd7c0aec81628f5; log_records 5 99c602eb1debd304; log_hashes 10 3c4b909c2db8eb8e; materials 10 8dfe16ae401cfb7f
--
-- PostgreSQL database dump
--



SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: keyturn; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA keyturn;


SET default_tablespace = '';


--
-- Name: jobs; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.jobs (
    seq bigint NOT NULL,
    id text NOT NULL,
    lane text NOT NULL,
    target text NOT NULL,
    key text NOT NULL,
    priority integer NOT NULL,
    run_at bigint NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    fence bigint DEFAULT 0 NOT NULL,
    state integer NOT NULL,
    front boolean DEFAULT false NOT NULL,
    until bigint,
    holder text,
    body bytea NOT NULL,
    CONSTRAINT jobs_check CHECK (((NOT front) OR (state = 1))),
    CONSTRAINT jobs_check1 CHECK (((until IS NOT NULL) = (state = 3))),
    CONSTRAINT jobs_state_check CHECK ((state = ANY (ARRAY[1, 2, 3])))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000');


--
-- Name: job_claim(bigint, bigint, integer, integer, text[], integer[], integer, bigint, text); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.job_claim(at bigint, lease_until bigint, most integer, per_target integer, bound_targets text[], bounds integer[], least_priority integer, last_fence bigint, new_holder text) RETURNS SETOF keyturn.jobs
    LANGUAGE plpgsql
    AS $$
DECLARE
    overtaken record;
    below bigint := 2147483648;
    level integer;
    taken integer := 0;
    leased jobs%ROWTYPE;
    targets text[];
BEGIN
    FOR overtaken IN SELECT e.seq, e.lane FROM jobs e
        WHERE e.state = 3 AND e.until <= at AND EXISTS (SELECT FROM jobs w WHERE w.lane = e.lane AND w.state < 3)
    LOOP
        DELETE FROM jobs WHERE seq = overtaken.seq;
        PERFORM job_unblock(overtaken.lane);
    END LOOP;
    WHILE taken < most LOOP
        SELECT max(priority) INTO level FROM (
            (SELECT priority FROM jobs WHERE front AND priority < below ORDER BY priority DESC LIMIT 1)
            UNION ALL
            (SELECT priority FROM jobs WHERE state = 3 AND until <= at AND priority < below)
        ) AS levels;
        EXIT WHEN level IS NULL OR least_priority <> 0 AND level < least_priority;
        targets := '{}';
        FOR leased IN
            WITH live AS (
                SELECT target, count(*) AS n FROM jobs WHERE state = 3 AND until > at GROUP BY target
            ), bound AS (
                SELECT u.target, u.n FROM unnest(bound_targets, bounds) AS u (target, n)
            ), fronts AS (
                SELECT target FROM jobs WHERE front AND priority = level AND run_at <= at
                ORDER BY run_at, seq LIMIT most - taken + (SELECT count(*) FROM live) + cardinality(bound_targets)
            ), candidates AS (
                SELECT f.target, j.seq, j.run_at FROM fronts f CROSS JOIN LATERAL (
                    SELECT b.seq, b.run_at FROM jobs b WHERE b.state = 1 AND b.target = f.target AND b.priority = level AND b.run_at <= at
                    ORDER BY b.run_at, b.seq LIMIT least(most - taken, coalesce((SELECT n FROM bound WHERE bound.target = f.target), per_target))
                ) AS j
                UNION ALL
                SELECT target, seq, run_at FROM jobs WHERE state = 3 AND until <= at AND priority = level
            ), ranked AS (
                SELECT c.seq, c.run_at, coalesce(bound.n, per_target) AS allowed,
                    coalesce(live.n, 0) + row_number() OVER (PARTITION BY c.target ORDER BY c.run_at, c.seq) - 1 AS rank
                FROM candidates c LEFT JOIN live ON live.target = c.target LEFT JOIN bound ON bound.target = c.target
            ), picked AS (
                SELECT r.seq, row_number() OVER (ORDER BY r.rank, r.run_at, r.seq) AS nth FROM ranked r WHERE r.rank < r.allowed
                ORDER BY r.rank, r.run_at, r.seq LIMIT most - taken
            )
            UPDATE jobs SET state = 3, front = false, until = lease_until, attempt = attempt + 1, fence = last_fence + taken + picked.nth, holder = new_holder
            FROM picked WHERE jobs.seq = picked.seq RETURNING jobs.*
        LOOP
            taken := taken + 1;
            targets := targets || leased.target;
            RETURN NEXT leased;
        END LOOP;
        PERFORM job_refresh_front(t.target, level) FROM (SELECT DISTINCT unnest(targets) AS target) AS t;
        below := level;
    END LOOP;
END $$;


--
-- Name: job_drop(text); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.job_drop(of_lane text) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    gone_target text;
    gone_priority integer;
BEGIN
    DELETE FROM jobs WHERE lane = of_lane AND state < 3 RETURNING target, priority INTO gone_target, gone_priority;
    IF FOUND THEN
        PERFORM job_refresh_front(gone_target, gone_priority);
    END IF;
END $$;


--
-- Name: job_enqueue(text, text, text, text, integer, bigint, bytea); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.job_enqueue(new_id text, new_lane text, new_target text, new_key text, new_priority integer, new_run_at bigint, new_body bytea) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    made bigint;
    leased boolean;
BEGIN
    PERFORM FROM jobs WHERE id = new_id;
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM job_drop(new_lane);
    PERFORM FROM jobs WHERE lane = new_lane AND state = 3;
    leased := FOUND;
    INSERT INTO jobs (id, lane, target, key, priority, run_at, state, body)
        VALUES (new_id, new_lane, new_target, new_key, new_priority, new_run_at, CASE WHEN leased THEN 2 ELSE 1 END, new_body)
        RETURNING seq INTO made;
    IF NOT leased THEN
        PERFORM job_join(made);
    END IF;
END $$;


--
-- Name: job_join(bigint); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.job_join(job bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    mine jobs%ROWTYPE;
    present jobs%ROWTYPE;
BEGIN
    SELECT * INTO mine FROM jobs WHERE seq = job;
    SELECT * INTO present FROM jobs WHERE target = mine.target AND priority = mine.priority AND front;
    IF FOUND THEN
        IF (present.run_at, present.seq) < (mine.run_at, mine.seq) THEN
            RETURN;
        END IF;
        UPDATE jobs SET front = false WHERE seq = present.seq;
    END IF;
    UPDATE jobs SET front = true WHERE seq = job;
END $$;


--
-- Name: job_refresh_front(text, integer); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.job_refresh_front(of_target text, of_priority integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    first bigint;
    marked boolean;
BEGIN
    SELECT seq, front INTO first, marked FROM jobs
        WHERE target = of_target AND priority = of_priority AND state = 1 ORDER BY run_at, seq LIMIT 1;
    IF FOUND AND NOT marked THEN
        UPDATE jobs SET front = true WHERE seq = first;
    END IF;
END $$;


--
-- Name: job_settle(text, bigint, bigint); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.job_settle(of_id text, of_fence bigint, retry_at bigint) RETURNS SETOF integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    held jobs%ROWTYPE;
    overtaken boolean;
BEGIN
    SELECT * INTO held FROM jobs WHERE id = of_id AND state = 3 AND fence = of_fence;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM FROM jobs WHERE lane = held.lane AND state < 3;
    overtaken := FOUND;
    IF retry_at IS NOT NULL AND NOT overtaken THEN
        UPDATE jobs SET state = 1, until = NULL, holder = NULL, run_at = retry_at WHERE seq = held.seq;
        PERFORM job_join(held.seq);
    ELSE
        DELETE FROM jobs WHERE seq = held.seq;
        IF overtaken THEN
            PERFORM job_unblock(held.lane);
        END IF;
    END IF;
    RETURN NEXT 1;
END $$;


--
-- Name: job_unblock(text); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.job_unblock(of_lane text) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    freed bigint;
BEGIN
    UPDATE jobs SET state = 1 WHERE lane = of_lane AND state < 3 RETURNING seq INTO freed;
    IF FOUND THEN
        PERFORM job_join(freed);
    END IF;
END $$;


--
-- Name: refuse_change(); Type: FUNCTION; Schema: keyturn; Owner: -
--

CREATE FUNCTION keyturn.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;


--
-- Name: counters; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.counters (
    id integer NOT NULL,
    rev bigint NOT NULL,
    fence bigint NOT NULL,
    writer text DEFAULT ''::text NOT NULL,
    batch bigint DEFAULT 0 NOT NULL,
    CONSTRAINT counters_id_check CHECK ((id = 1))
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000');


--
-- Name: docs; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.docs (
    kind text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    rev bigint NOT NULL,
    due bigint,
    body bytea NOT NULL
);
ALTER TABLE ONLY keyturn.docs ALTER COLUMN body SET COMPRESSION lz4;


--
-- Name: events; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.events (
    key text NOT NULL COLLATE pg_catalog."C",
    seq bigint NOT NULL,
    rotation bytea NOT NULL,
    type text NOT NULL,
    at bigint NOT NULL,
    body bytea NOT NULL,
    CONSTRAINT events_rotation_check CHECK ((length(rotation) = 16)),
    CONSTRAINT events_seq_check CHECK ((seq > 0))
);
ALTER TABLE ONLY keyturn.events ALTER COLUMN body SET COMPRESSION lz4;


--
-- Name: goose_db_version; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.goose_db_version (
    id integer NOT NULL,
    version_id bigint NOT NULL,
    is_applied boolean NOT NULL,
    tstamp timestamp without time zone DEFAULT now() NOT NULL
);


--
-- Name: goose_db_version_id_seq; Type: SEQUENCE; Schema: keyturn; Owner: -
--

ALTER TABLE keyturn.goose_db_version ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME keyturn.goose_db_version_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: jobs_seq_seq; Type: SEQUENCE; Schema: keyturn; Owner: -
--

ALTER TABLE keyturn.jobs ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME keyturn.jobs_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: log_hashes; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.log_hashes (
    number bigint NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT log_hashes_hash_check CHECK ((length(hash) = 32)),
    CONSTRAINT log_hashes_number_check CHECK ((number >= 0))
);


--
-- Name: log_records; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.log_records (
    number bigint NOT NULL,
    record bytea NOT NULL,
    CONSTRAINT log_records_number_check CHECK ((number >= 0))
);


--
-- Name: materials; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
)
PARTITION BY HASH (key);


--
-- Name: materials_0; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_0 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_0 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_1; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_1 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_1 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_10; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_10 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_10 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_11; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_11 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_11 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_12; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_12 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_12 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_13; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_13 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_13 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_14; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_14 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_14 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_15; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_15 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_15 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_2; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_2 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_2 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_3; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_3 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_3 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_4; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_4 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_4 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_5; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_5 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_5 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_6; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_6 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_6 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_7; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_7 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_7 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_8; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_8 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_8 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: materials_9; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.materials_9 (
    key text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT materials_version_check CHECK ((version > 0))
);
ALTER TABLE ONLY keyturn.materials_9 ALTER COLUMN sealed SET STORAGE EXTERNAL;


--
-- Name: moves; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.moves (
    id integer NOT NULL,
    move text NOT NULL,
    source text NOT NULL,
    done boolean NOT NULL,
    CONSTRAINT moves_id_check CHECK ((id = 1))
);


--
-- Name: nodes; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.nodes (
    id text NOT NULL,
    batch bigint NOT NULL,
    seen timestamp with time zone DEFAULT now() NOT NULL
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000');


--
-- Name: shreds; Type: TABLE; Schema: keyturn; Owner: -
--

CREATE TABLE keyturn.shreds (
    part text NOT NULL,
    number bigint NOT NULL
);


--
-- Name: materials_0; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_0 FOR VALUES WITH (modulus 16, remainder 0);


--
-- Name: materials_1; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_1 FOR VALUES WITH (modulus 16, remainder 1);


--
-- Name: materials_10; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_10 FOR VALUES WITH (modulus 16, remainder 10);


--
-- Name: materials_11; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_11 FOR VALUES WITH (modulus 16, remainder 11);


--
-- Name: materials_12; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_12 FOR VALUES WITH (modulus 16, remainder 12);


--
-- Name: materials_13; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_13 FOR VALUES WITH (modulus 16, remainder 13);


--
-- Name: materials_14; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_14 FOR VALUES WITH (modulus 16, remainder 14);


--
-- Name: materials_15; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_15 FOR VALUES WITH (modulus 16, remainder 15);


--
-- Name: materials_2; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_2 FOR VALUES WITH (modulus 16, remainder 2);


--
-- Name: materials_3; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_3 FOR VALUES WITH (modulus 16, remainder 3);


--
-- Name: materials_4; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_4 FOR VALUES WITH (modulus 16, remainder 4);


--
-- Name: materials_5; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_5 FOR VALUES WITH (modulus 16, remainder 5);


--
-- Name: materials_6; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_6 FOR VALUES WITH (modulus 16, remainder 6);


--
-- Name: materials_7; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_7 FOR VALUES WITH (modulus 16, remainder 7);


--
-- Name: materials_8; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_8 FOR VALUES WITH (modulus 16, remainder 8);


--
-- Name: materials_9; Type: TABLE ATTACH; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials ATTACH PARTITION keyturn.materials_9 FOR VALUES WITH (modulus 16, remainder 9);


--
-- Data for Name: counters; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.counters VALUES (1, 10, 2, '', 0);


--
-- Data for Name: docs; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.docs VALUES ('key', 'prod/0/dätabase', 2, NULL, '\x');
INSERT INTO keyturn.docs VALUES ('key', 'prod/1/dätabase', 4, NULL, '\x');
INSERT INTO keyturn.docs VALUES ('key', 'prod/2/dätabase', 6, NULL, '\x');
INSERT INTO keyturn.docs VALUES ('key', 'prod/3/dätabase', 8, NULL, '\x');
INSERT INTO keyturn.docs VALUES ('key', 'prod/4/dätabase', 10, NULL, '\x');
INSERT INTO keyturn.docs VALUES ('rotation', 'prod/0/dätabase', 1, 1795428000000000, '\x7b7d');
INSERT INTO keyturn.docs VALUES ('rotation', 'prod/1/dätabase', 3, 1795428060000000, '\x7b7d');
INSERT INTO keyturn.docs VALUES ('rotation', 'prod/2/dätabase', 5, 1795428120000000, '\x7b7d');
INSERT INTO keyturn.docs VALUES ('rotation', 'prod/3/dätabase', 7, 1795428180000000, '\x7b7d');
INSERT INTO keyturn.docs VALUES ('rotation', 'prod/4/dätabase', 9, 1795428240000000, '\x7b7d');


--
-- Data for Name: events; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.events VALUES ('prod/0/dätabase', 1, '\x01000000000000000000000000000000', 'accepted', 1795428000000000, '\x7b226e223a307d');
INSERT INTO keyturn.events VALUES ('prod/0/dätabase', 2, '\x01000000000000000000000000000000', 'accepted', 1795428001000000, '\x7b226e223a317d');
INSERT INTO keyturn.events VALUES ('prod/0/dätabase', 3, '\x01000000000000000000000000000000', 'accepted', 1795428002000000, '\x7b226e223a327d');
INSERT INTO keyturn.events VALUES ('prod/0/dätabase', 4, '\x01000000000000000000000000000000', 'accepted', 1795428003000000, '\x7b226e223a337d');
INSERT INTO keyturn.events VALUES ('prod/1/dätabase', 1, '\x02000000000000000000000000000000', 'accepted', 1795428000000000, '\x7b226e223a307d');
INSERT INTO keyturn.events VALUES ('prod/1/dätabase', 2, '\x02000000000000000000000000000000', 'accepted', 1795428001000000, '\x7b226e223a317d');
INSERT INTO keyturn.events VALUES ('prod/1/dätabase', 3, '\x02000000000000000000000000000000', 'accepted', 1795428002000000, '\x7b226e223a327d');
INSERT INTO keyturn.events VALUES ('prod/1/dätabase', 4, '\x02000000000000000000000000000000', 'accepted', 1795428003000000, '\x7b226e223a337d');
INSERT INTO keyturn.events VALUES ('prod/2/dätabase', 1, '\x03000000000000000000000000000000', 'accepted', 1795428000000000, '\x7b226e223a307d');
INSERT INTO keyturn.events VALUES ('prod/2/dätabase', 2, '\x03000000000000000000000000000000', 'accepted', 1795428001000000, '\x7b226e223a317d');
INSERT INTO keyturn.events VALUES ('prod/2/dätabase', 3, '\x03000000000000000000000000000000', 'accepted', 1795428002000000, '\x7b226e223a327d');
INSERT INTO keyturn.events VALUES ('prod/2/dätabase', 4, '\x03000000000000000000000000000000', 'accepted', 1795428003000000, '\x7b226e223a337d');
INSERT INTO keyturn.events VALUES ('prod/3/dätabase', 1, '\x04000000000000000000000000000000', 'accepted', 1795428000000000, '\x7b226e223a307d');
INSERT INTO keyturn.events VALUES ('prod/3/dätabase', 2, '\x04000000000000000000000000000000', 'accepted', 1795428001000000, '\x7b226e223a317d');
INSERT INTO keyturn.events VALUES ('prod/3/dätabase', 3, '\x04000000000000000000000000000000', 'accepted', 1795428002000000, '\x7b226e223a327d');
INSERT INTO keyturn.events VALUES ('prod/3/dätabase', 4, '\x04000000000000000000000000000000', 'accepted', 1795428003000000, '\x7b226e223a337d');
INSERT INTO keyturn.events VALUES ('prod/4/dätabase', 1, '\x05000000000000000000000000000000', 'accepted', 1795428000000000, '\x7b226e223a307d');
INSERT INTO keyturn.events VALUES ('prod/4/dätabase', 2, '\x05000000000000000000000000000000', 'accepted', 1795428001000000, '\x7b226e223a317d');
INSERT INTO keyturn.events VALUES ('prod/4/dätabase', 3, '\x05000000000000000000000000000000', 'accepted', 1795428002000000, '\x7b226e223a327d');
INSERT INTO keyturn.events VALUES ('prod/4/dätabase', 4, '\x05000000000000000000000000000000', 'accepted', 1795428003000000, '\x7b226e223a337d');


--
-- Data for Name: goose_db_version; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.goose_db_version VALUES (1, 0, true, '2026-11-26 21:14:58.589767');
INSERT INTO keyturn.goose_db_version VALUES (2, 1, true, '2026-11-26 21:14:58.594751');
INSERT INTO keyturn.goose_db_version VALUES (3, 2, true, '2026-11-26 21:14:58.689967');
INSERT INTO keyturn.goose_db_version VALUES (4, 3, true, '2026-11-26 21:14:58.693866');


--
-- Data for Name: jobs; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.jobs VALUES (1, 'leased 0', 'lane 0', 'hanging', 'prod/0/dätabase', 9, 1795431600000000, 1, 1, 1, true, NULL, NULL, '\x626f6479');
INSERT INTO keyturn.jobs VALUES (2, 'free 0', 'other 0', 'target', 'prod/0/dätabase', 0, 1795431600000000, 0, 0, 1, true, NULL, NULL, '\x');
INSERT INTO keyturn.jobs VALUES (3, 'leased 1', 'lane 1', 'hanging', 'prod/1/dätabase', 8, 1795428000000000, 1, 2, 3, false, 1795428060000000, NULL, '\x626f6479');
INSERT INTO keyturn.jobs VALUES (4, 'free 1', 'other 1', 'target', 'prod/1/dätabase', -1, 1795431600000000, 0, 0, 1, true, NULL, NULL, '\x');
INSERT INTO keyturn.jobs VALUES (5, 'leased 2', 'lane 2', 'hanging', 'prod/2/dätabase', 7, 1795428000000000, 0, 0, 1, true, NULL, NULL, '\x626f6479');
INSERT INTO keyturn.jobs VALUES (6, 'free 2', 'other 2', 'target', 'prod/2/dätabase', -2, 1795431600000000, 0, 0, 1, true, NULL, NULL, '\x');
INSERT INTO keyturn.jobs VALUES (7, 'leased 3', 'lane 3', 'hanging', 'prod/3/dätabase', 6, 1795428000000000, 0, 0, 1, true, NULL, NULL, '\x626f6479');
INSERT INTO keyturn.jobs VALUES (8, 'free 3', 'other 3', 'target', 'prod/3/dätabase', -3, 1795431600000000, 0, 0, 1, true, NULL, NULL, '\x');
INSERT INTO keyturn.jobs VALUES (9, 'leased 4', 'lane 4', 'hanging', 'prod/4/dätabase', 5, 1795428000000000, 0, 0, 1, true, NULL, NULL, '\x626f6479');
INSERT INTO keyturn.jobs VALUES (10, 'free 4', 'other 4', 'target', 'prod/4/dätabase', -4, 1795431600000000, 0, 0, 1, true, NULL, NULL, '\x');
INSERT INTO keyturn.jobs VALUES (11, 'blocked', 'lane 1', 'hanging', 'k', 0, 1795428000000000, 0, 0, 2, false, NULL, NULL, '\x');


--
-- Data for Name: log_hashes; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.log_hashes VALUES (0, '\x0000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (1, '\x0001000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (2, '\x0100000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (3, '\x0101000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (4, '\x0200000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (5, '\x0201000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (6, '\x0300000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (7, '\x0301000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (8, '\x0400000000000000000000000000000000000000000000000000000000000000');
INSERT INTO keyturn.log_hashes VALUES (9, '\x0401000000000000000000000000000000000000000000000000000000000000');


--
-- Data for Name: log_records; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.log_records VALUES (0, '\x70726f642f302f64c3a4746162617365');
INSERT INTO keyturn.log_records VALUES (1, '\x70726f642f312f64c3a4746162617365');
INSERT INTO keyturn.log_records VALUES (2, '\x70726f642f322f64c3a4746162617365');
INSERT INTO keyturn.log_records VALUES (3, '\x70726f642f332f64c3a4746162617365');
INSERT INTO keyturn.log_records VALUES (4, '\x70726f642f342f64c3a4746162617365');


--
-- Data for Name: materials_0; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_1; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.materials_1 VALUES ('prod/1/dätabase', 1, '\x7365616c656400ff70726f642f312f64c3a4746162617365');
INSERT INTO keyturn.materials_1 VALUES ('prod/1/dätabase', 2, '\x');


--
-- Data for Name: materials_10; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_11; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_12; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_13; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.materials_13 VALUES ('prod/4/dätabase', 1, '\x7365616c656400ff70726f642f342f64c3a4746162617365');
INSERT INTO keyturn.materials_13 VALUES ('prod/4/dätabase', 2, '\x');


--
-- Data for Name: materials_14; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_15; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_2; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_3; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_4; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.materials_4 VALUES ('prod/0/dätabase', 1, '\x7365616c656400ff70726f642f302f64c3a4746162617365');
INSERT INTO keyturn.materials_4 VALUES ('prod/0/dätabase', 2, '\x');
INSERT INTO keyturn.materials_4 VALUES ('prod/3/dätabase', 1, '\x7365616c656400ff70726f642f332f64c3a4746162617365');
INSERT INTO keyturn.materials_4 VALUES ('prod/3/dätabase', 2, '\x');


--
-- Data for Name: materials_5; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_6; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_7; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: materials_8; Type: TABLE DATA; Schema: keyturn; Owner: -
--

INSERT INTO keyturn.materials_8 VALUES ('prod/2/dätabase', 1, '\x7365616c656400ff70726f642f322f64c3a4746162617365');
INSERT INTO keyturn.materials_8 VALUES ('prod/2/dätabase', 2, '\x');


--
-- Data for Name: materials_9; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: moves; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: nodes; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Data for Name: shreds; Type: TABLE DATA; Schema: keyturn; Owner: -
--



--
-- Name: goose_db_version_id_seq; Type: SEQUENCE SET; Schema: keyturn; Owner: -
--

SELECT pg_catalog.setval('keyturn.goose_db_version_id_seq', 4, true);


--
-- Name: jobs_seq_seq; Type: SEQUENCE SET; Schema: keyturn; Owner: -
--

SELECT pg_catalog.setval('keyturn.jobs_seq_seq', 12, false);


--
-- Name: counters counters_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.counters
    ADD CONSTRAINT counters_pkey PRIMARY KEY (id);


--
-- Name: docs docs_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.docs
    ADD CONSTRAINT docs_pkey PRIMARY KEY (kind, name);


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (key, seq);


--
-- Name: goose_db_version goose_db_version_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.goose_db_version
    ADD CONSTRAINT goose_db_version_pkey PRIMARY KEY (id);


--
-- Name: jobs jobs_id_key; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.jobs
    ADD CONSTRAINT jobs_id_key UNIQUE (id);


--
-- Name: jobs jobs_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (seq);


--
-- Name: log_hashes log_hashes_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.log_hashes
    ADD CONSTRAINT log_hashes_pkey PRIMARY KEY (number);


--
-- Name: log_records log_records_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.log_records
    ADD CONSTRAINT log_records_pkey PRIMARY KEY (number);


--
-- Name: materials materials_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials
    ADD CONSTRAINT materials_pkey PRIMARY KEY (key, version);


--
-- Name: materials_0 materials_0_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_0
    ADD CONSTRAINT materials_0_pkey PRIMARY KEY (key, version);


--
-- Name: materials_10 materials_10_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_10
    ADD CONSTRAINT materials_10_pkey PRIMARY KEY (key, version);


--
-- Name: materials_11 materials_11_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_11
    ADD CONSTRAINT materials_11_pkey PRIMARY KEY (key, version);


--
-- Name: materials_12 materials_12_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_12
    ADD CONSTRAINT materials_12_pkey PRIMARY KEY (key, version);


--
-- Name: materials_13 materials_13_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_13
    ADD CONSTRAINT materials_13_pkey PRIMARY KEY (key, version);


--
-- Name: materials_14 materials_14_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_14
    ADD CONSTRAINT materials_14_pkey PRIMARY KEY (key, version);


--
-- Name: materials_15 materials_15_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_15
    ADD CONSTRAINT materials_15_pkey PRIMARY KEY (key, version);


--
-- Name: materials_1 materials_1_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_1
    ADD CONSTRAINT materials_1_pkey PRIMARY KEY (key, version);


--
-- Name: materials_2 materials_2_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_2
    ADD CONSTRAINT materials_2_pkey PRIMARY KEY (key, version);


--
-- Name: materials_3 materials_3_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_3
    ADD CONSTRAINT materials_3_pkey PRIMARY KEY (key, version);


--
-- Name: materials_4 materials_4_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_4
    ADD CONSTRAINT materials_4_pkey PRIMARY KEY (key, version);


--
-- Name: materials_5 materials_5_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_5
    ADD CONSTRAINT materials_5_pkey PRIMARY KEY (key, version);


--
-- Name: materials_6 materials_6_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_6
    ADD CONSTRAINT materials_6_pkey PRIMARY KEY (key, version);


--
-- Name: materials_7 materials_7_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_7
    ADD CONSTRAINT materials_7_pkey PRIMARY KEY (key, version);


--
-- Name: materials_8 materials_8_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_8
    ADD CONSTRAINT materials_8_pkey PRIMARY KEY (key, version);


--
-- Name: materials_9 materials_9_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.materials_9
    ADD CONSTRAINT materials_9_pkey PRIMARY KEY (key, version);


--
-- Name: moves moves_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.moves
    ADD CONSTRAINT moves_pkey PRIMARY KEY (id);


--
-- Name: nodes nodes_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (id);


--
-- Name: shreds shreds_pkey; Type: CONSTRAINT; Schema: keyturn; Owner: -
--

ALTER TABLE ONLY keyturn.shreds
    ADD CONSTRAINT shreds_pkey PRIMARY KEY (part);


--
-- Name: docs_by_due; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE INDEX docs_by_due ON keyturn.docs USING btree (kind, due, name) WHERE (due IS NOT NULL);


--
-- Name: docs_by_rev; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE UNIQUE INDEX docs_by_rev ON keyturn.docs USING btree (kind, rev);


--
-- Name: events_by_rotation; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE INDEX events_by_rotation ON keyturn.events USING btree (rotation, key, seq);


--
-- Name: jobs_backlog; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE INDEX jobs_backlog ON keyturn.jobs USING btree (target, priority, run_at, seq) WHERE (state = 1);


--
-- Name: jobs_by_key; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE INDEX jobs_by_key ON keyturn.jobs USING btree (key, seq);


--
-- Name: jobs_by_lease; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE INDEX jobs_by_lease ON keyturn.jobs USING btree (until, target) WHERE (state = 3);


--
-- Name: jobs_claim_order; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE INDEX jobs_claim_order ON keyturn.jobs USING btree (priority, run_at, seq) WHERE front;


--
-- Name: jobs_front; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE UNIQUE INDEX jobs_front ON keyturn.jobs USING btree (target, priority) WHERE front;


--
-- Name: jobs_lane_leased; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE UNIQUE INDEX jobs_lane_leased ON keyturn.jobs USING btree (lane) WHERE (state = 3);


--
-- Name: jobs_lane_waiting; Type: INDEX; Schema: keyturn; Owner: -
--

CREATE UNIQUE INDEX jobs_lane_waiting ON keyturn.jobs USING btree (lane) WHERE (state < 3);


--
-- Name: materials_0_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_0_pkey;


--
-- Name: materials_10_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_10_pkey;


--
-- Name: materials_11_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_11_pkey;


--
-- Name: materials_12_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_12_pkey;


--
-- Name: materials_13_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_13_pkey;


--
-- Name: materials_14_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_14_pkey;


--
-- Name: materials_15_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_15_pkey;


--
-- Name: materials_1_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_1_pkey;


--
-- Name: materials_2_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_2_pkey;


--
-- Name: materials_3_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_3_pkey;


--
-- Name: materials_4_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_4_pkey;


--
-- Name: materials_5_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_5_pkey;


--
-- Name: materials_6_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_6_pkey;


--
-- Name: materials_7_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_7_pkey;


--
-- Name: materials_8_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_8_pkey;


--
-- Name: materials_9_pkey; Type: INDEX ATTACH; Schema: keyturn; Owner: -
--

ALTER INDEX keyturn.materials_pkey ATTACH PARTITION keyturn.materials_9_pkey;


--
-- Name: events append_only; Type: TRIGGER; Schema: keyturn; Owner: -
--

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON keyturn.events FOR EACH ROW EXECUTE FUNCTION keyturn.refuse_change();


--
-- Name: log_hashes append_only; Type: TRIGGER; Schema: keyturn; Owner: -
--

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON keyturn.log_hashes FOR EACH ROW EXECUTE FUNCTION keyturn.refuse_change();


--
-- Name: log_records append_only; Type: TRIGGER; Schema: keyturn; Owner: -
--

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON keyturn.log_records FOR EACH ROW EXECUTE FUNCTION keyturn.refuse_change();


--
-- Name: events never_truncated; Type: TRIGGER; Schema: keyturn; Owner: -
--

CREATE TRIGGER never_truncated BEFORE TRUNCATE ON keyturn.events FOR EACH STATEMENT EXECUTE FUNCTION keyturn.refuse_change();


--
-- Name: log_hashes never_truncated; Type: TRIGGER; Schema: keyturn; Owner: -
--

CREATE TRIGGER never_truncated BEFORE TRUNCATE ON keyturn.log_hashes FOR EACH STATEMENT EXECUTE FUNCTION keyturn.refuse_change();


--
-- Name: log_records never_truncated; Type: TRIGGER; Schema: keyturn; Owner: -
--

CREATE TRIGGER never_truncated BEFORE TRUNCATE ON keyturn.log_records FOR EACH STATEMENT EXECUTE FUNCTION keyturn.refuse_change();


--
-- PostgreSQL database dump complete
--


