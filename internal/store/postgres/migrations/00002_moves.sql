-- +goose Up
SELECT pg_advisory_xact_lock(1263817294, 1);

-- The move that has brought the installation here, if one has. Until it is done
-- no server works on the database.
CREATE TABLE moves (
    id     integer PRIMARY KEY CHECK (id = 1),
    move   text    NOT NULL,
    source text    NOT NULL,
    done   boolean NOT NULL
);
