-- +goose Up

-- Where the installation has moved to. Once there is a row, the database is not
-- opened any more: two stores that both go on would rotate the same keys.
CREATE TABLE moves (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    move        TEXT    NOT NULL,
    destination TEXT    NOT NULL
) STRICT;
